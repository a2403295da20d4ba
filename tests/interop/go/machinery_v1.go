//go:build machinery_v1

package main

import (
	"fmt"

	backends "github.com/RichardKnop/machinery/v1/backends/redis"
	"github.com/RichardKnop/machinery/v1/backends/result"
	brokers "github.com/RichardKnop/machinery/v1/brokers/redis"
	"github.com/RichardKnop/machinery/v1/config"
	locks "github.com/RichardKnop/machinery/v1/locks/redis"
	"github.com/RichardKnop/machinery/v1/log"
	"github.com/RichardKnop/machinery/v1/tasks"

	machinery "github.com/RichardKnop/machinery/v1"
)

const version = "v1"

// What the rest of the program calls by one name, whichever Machinery it is built on.
type (
	Config      = config.Config
	RedisConfig = config.RedisConfig
	Server      = machinery.Server
	Signature   = tasks.Signature
	TaskState   = tasks.TaskState
)

var (
	newAsyncResult       = result.NewAsyncResult
	newChainResult       = result.NewChainAsyncResult
	newChordResult       = result.NewChordAsyncResult
	newChain             = tasks.NewChain
	newGroup             = tasks.NewGroup
	newChord             = tasks.NewChord
	reflectValue         = tasks.ReflectValue
	retryLater           = tasks.NewErrRetryTaskLater
	signatureOf          = tasks.SignatureFromContext
	setDebug, setInfo    = log.SetDebug, log.SetInfo
	setWarning, setError = log.SetWarning, log.SetError
	errQuitGracefully    = machinery.ErrWorkerQuitGracefully
)

func newServer(cnf *Config, driver, address string, db int) (*Server, error) {
	switch driver {
	case "redigo":
		return machinery.NewServerWithBrokerBackendLock(
			cnf,
			brokers.New(cnf, address, "", "", db),
			backends.New(cnf, address, "", "", db),
			locks.New(cnf, []string{address}, db, lockRetries),
		), nil
	case "goredis":
		return machinery.NewServerWithBrokerBackendLock(
			cnf,
			brokers.NewGR(cnf, []string{address}, db),
			backends.NewGR(cnf, []string{address}, db),
			locks.New(cnf, []string{address}, db, lockRetries),
		), nil
	}
	return nil, fmt.Errorf("driver %q: give redigo or goredis", driver)
}
