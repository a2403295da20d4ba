// One end of the interoperability tests: a real Machinery caller, or a real Machinery worker.
//
// Built twice from the same sources: with the tag machinery_v1 on Machinery 1, without it on
// Machinery 2. The tests are in Python and drive it; see ../conftest.py.
package main

import (
	"flag"
	"fmt"
	"os"
	"strings"
)

// lockRetries is what Machinery itself gives to a lock it makes of a URL.
const lockRetries = 3

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run() error {
	if len(os.Args) < 2 {
		return fmt.Errorf("say caller or worker")
	}
	flags := flag.NewFlagSet(os.Args[1], flag.ContinueOnError)
	address := flags.String("address", "127.0.0.1:6379", "host:port of Redis")
	db := flags.Int("db", 0, "database")
	driver := flags.String("driver", "redigo", "redigo or goredis")
	queue := flags.String("queue", "machinery_tasks", "default queue")
	consume := flags.String("consume", "", "queue to consume, if not the default one")
	concurrency := flags.Int("concurrency", 2, "tasks at once")
	names := flags.String("tasks", "", "tasks to register, all by default")
	delayedMS := flags.Int("delayed-poll-ms", 1, "how often delayed tasks are looked at")
	if err := flags.Parse(os.Args[2:]); err != nil {
		return err
	}
	quieten()
	server, err := newServer(
		&Config{
			DefaultQueue:    *queue,
			ResultsExpireIn: 3600,
			Redis: &RedisConfig{
				MaxIdle:                10,
				NormalTasksPollPeriod:  1000,
				DelayedTasksPollPeriod: *delayedMS,
			},
		},
		*driver, *address, *db,
	)
	if err != nil {
		return err
	}
	switch os.Args[1] {
	case "caller":
		return serve(server, os.Stdin, os.Stdout)
	case "worker":
		chosen, err := choose(newTasks(*address, *db), *names)
		if err != nil {
			return err
		}
		if err := server.RegisterTasks(chosen); err != nil {
			return err
		}
		worker := server.NewCustomQueueWorker("interop", *concurrency, *consume)
		fmt.Println("ready")
		if err := worker.Launch(); err != nil && err != errQuitGracefully {
			return err
		}
		return nil
	}
	return fmt.Errorf("%q: say caller or worker", os.Args[1])
}

func choose(all map[string]interface{}, names string) (map[string]interface{}, error) {
	if names == "" {
		return all, nil
	}
	chosen := map[string]interface{}{}
	for _, name := range strings.Split(names, ",") {
		if all[name] == nil {
			return nil, fmt.Errorf("there is no task %q", name)
		}
		chosen[name] = all[name]
	}
	return chosen, nil
}
