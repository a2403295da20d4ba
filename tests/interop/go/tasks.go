package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

const here = "go"

// newTasks returns the tasks, under the names that ../interop_tasks.py gives its own.
func newTasks(address string, db int) map[string]interface{} {
	own := &books{redis.NewClient(&redis.Options{Addr: address, DB: db})}
	return map[string]interface{}{
		"echo_bool":          echo[bool],
		"echo_int":           echo[int],
		"echo_int8":          echo[int8],
		"echo_int16":         echo[int16],
		"echo_int32":         echo[int32],
		"echo_int64":         echo[int64],
		"echo_uint":          echo[uint],
		"echo_uint8":         echo[uint8],
		"echo_uint16":        echo[uint16],
		"echo_uint32":        echo[uint32],
		"echo_uint64":        echo[uint64],
		"echo_float32":       echo[float32],
		"echo_float64":       echo[float64],
		"echo_string":        echo[string],
		"echo_slice_bool":    echo[[]bool],
		"echo_slice_int":     echo[[]int],
		"echo_slice_int8":    echo[[]int8],
		"echo_slice_int16":   echo[[]int16],
		"echo_slice_int32":   echo[[]int32],
		"echo_slice_int64":   echo[[]int64],
		"echo_slice_uint":    echo[[]uint],
		"echo_slice_uint8":   echo[[]uint8],
		"echo_slice_uint16":  echo[[]uint16],
		"echo_slice_uint32":  echo[[]uint32],
		"echo_slice_uint64":  echo[[]uint64],
		"echo_slice_float32": echo[[]float32],
		"echo_slice_float64": echo[[]float64],
		"echo_slice_byte":    echo[[]byte],
		"echo_slice_string":  echo[[]string],

		"add":        add,
		"subtract":   func(a, b int64) (int64, error) { return a - b, nil },
		"multiply":   multiply,
		"halve":      func(x float64) (float64, error) { return x / 2, nil },
		"joined":     func(parts ...string) (string, error) { return strings.Join(parts, "|"), nil },
		"collected":  func(numbers ...int64) ([]int64, error) { return numbers, nil },
		"nothing":    func() error { return nil },
		"several":    several,
		"relabel":    relabel,
		"fail":       func(text string) (int64, error) { return 0, errors.New(text) },
		"panics":     func(text string) (int64, error) { panic(errors.New(text)) },
		"now":        func() (int64, error) { return time.Now().UnixNano(), nil },
		"relay":      relay,
		"insist":     insist,
		"count":      own.count,
		"count_sum":  own.countSum,
		"gated":      own.gated,
		"gated_fail": own.gatedFail,
		"only_go":    func(n int64) (string, int64, error) { return here, n, nil },
	}
}

func echo[T any](value T) (T, error) { return value, nil }

func add(numbers ...int64) (int64, error) {
	var sum int64
	for _, number := range numbers {
		sum += number
	}
	return sum, nil
}

func multiply(numbers ...int64) (int64, error) {
	product := int64(1)
	for _, number := range numbers {
		product *= number
	}
	return product, nil
}

func several() (string, int64, float64, bool, []byte, []string, error) {
	return "two\nlines <&>", -7, 0.5, true, []byte{0, 255}, []string{"a", ""}, nil
}

// relabel takes what several returns.
func relabel(
	a string, b int64, c float64, d bool, e []byte, f []string,
) (string, int64, float64, bool, []byte, []string, error) {
	return a, b, c, d, e, f, nil
}

// relay fails as often as its path has steps left, each time where the path says: "go,py,go" fails
// here, is retried and fails there, and then succeeds here. Elsewhere it asks to be run again.
func relay(ctx context.Context, path string) (string, error) {
	steps := strings.Split(path, ",")
	left := signatureOf(ctx).RetryCount
	step := len(steps) - 1 - left
	if steps[step] != here {
		return "", retryLater("not mine", 20*time.Millisecond)
	}
	if left > 0 {
		return "", fmt.Errorf("step %d failed in %s", step, here)
	}
	return here, nil
}

// insist asks to be run again until it is run where it wants to be.
func insist(wanted string) (string, error) {
	if wanted != here {
		return "", retryLater("not mine", 20*time.Millisecond)
	}
	return here, nil
}

// books is what tasks write down for the tests to read.
type books struct{ client *redis.Client }

// count notes that this task was run, and says where.
func (b *books) count(ctx context.Context, number int64) (string, int64, error) {
	uuid := signatureOf(ctx).UUID
	return here, number, b.client.HIncrBy(context.Background(), "runs", uuid, 1).Err()
}

// countSum notes that this task was run, and returns the sum.
func (b *books) countSum(ctx context.Context, numbers ...int64) (int64, error) {
	if _, _, err := b.count(ctx, 0); err != nil {
		return 0, err
	}
	return add(numbers...)
}

// gated notes that it runs, and returns number once the gate is open: once a key of that name exists.
func (b *books) gated(ctx context.Context, gate string, number int64) (int64, error) {
	if _, _, err := b.count(ctx, 0); err != nil {
		return 0, err
	}
	for {
		open, err := b.client.Exists(context.Background(), gate).Result()
		if err != nil || open == 1 {
			return number, err
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// gatedFail fails with this text once the gate is open.
func (b *books) gatedFail(ctx context.Context, gate, text string) (int64, error) {
	if _, err := b.gated(ctx, gate, 0); err != nil {
		return 0, err
	}
	return 0, errors.New(text)
}
