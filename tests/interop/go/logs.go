package main

import (
	"io"
	"log"
	"os"
)

// quieten sends warnings and errors to stderr and drops the rest: stdout is for answers.
func quieten() {
	nothing := log.New(io.Discard, "", 0)
	setDebug(nothing)
	setInfo(nothing)
	setWarning(log.New(os.Stderr, "warning: ", log.Lmicroseconds))
	setError(log.New(os.Stderr, "error: ", log.Lmicroseconds))
}
