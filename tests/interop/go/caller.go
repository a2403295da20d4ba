package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"time"
)

// request is one line of the caller's input.
type request struct {
	Op          string
	Signatures  []*Signature // send, chain, group, chord, periodic
	Callback    *Signature   // chord, periodic
	Kind        string       // periodic: task, chain, group or chord
	Spec        string       // periodic
	Name        string       // periodic
	UUIDs       []string     // get, get_chain, get_chord, state
	Group       string       // completed
	Count       int          // completed
	Queue       string       // pending
	Concurrency int          // group, chord, periodic: sendConcurrency
	TimeoutMS   int          // get, get_chain, get_chord
}

// response is one line of its output. What a request does not ask for is left out.
type response struct {
	UUIDs      []string     `json:",omitempty"`
	Group      string       `json:",omitempty"`
	Answers    []answer     `json:",omitempty"`
	States     []*TaskState `json:",omitempty"`
	Signatures []*Signature `json:",omitempty"`
	Completed  bool         `json:",omitempty"`
	Error      string       `json:",omitempty"`
}

// answer is what AsyncResult gave: Go values with the names of their types, or an error.
type answer struct {
	Types  []string
	Values []interface{}
	Error  string
}

// serve answers requests until the input ends.
func serve(server *Server, in io.Reader, out io.Writer) error {
	lines := bufio.NewReaderSize(in, 1<<20)
	for {
		line, err := lines.ReadString('\n')
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		reply, err := handle(server, line)
		if err != nil {
			reply.Error = err.Error()
		}
		text, err := json.Marshal(reply)
		if err != nil {
			return err
		}
		if _, err := out.Write(append(text, '\n')); err != nil {
			return err
		}
	}
}

func handle(server *Server, line string) (response, error) {
	var asked request
	if err := decode(line, &asked); err != nil {
		return response{}, err
	}
	for _, signature := range append(asked.Signatures, asked.Callback) {
		if err := giveTypes(signature); err != nil {
			return response{}, err
		}
	}
	switch asked.Op {
	case "send":
		return sendTasks(server, asked)
	case "chain", "group", "chord":
		return sendWorkflow(server, asked)
	case "get", "get_chain", "get_chord":
		return get(server, asked)
	case "periodic":
		return response{}, schedule(server, asked)
	}
	return look(server, asked)
}

func sendTasks(server *Server, asked request) (response, error) {
	var reply response
	for _, signature := range asked.Signatures {
		sent, err := server.SendTask(signature)
		if err != nil {
			return reply, err
		}
		reply.UUIDs = append(reply.UUIDs, sent.Signature.UUID)
	}
	return reply, nil
}

func sendWorkflow(server *Server, asked request) (response, error) {
	if asked.Op == "chain" {
		chain, err := newChain(asked.Signatures...)
		if err != nil {
			return response{}, err
		}
		_, err = server.SendChain(chain)
		return response{UUIDs: uuidsOf(chain.Tasks)}, err
	}
	group, err := newGroup(asked.Signatures...)
	if err != nil {
		return response{}, err
	}
	reply := response{UUIDs: uuidsOf(group.Tasks), Group: group.GroupUUID}
	if asked.Op == "group" {
		_, err = server.SendGroup(group, asked.Concurrency)
		return reply, err
	}
	chord, err := newChord(group, asked.Callback)
	if err != nil {
		return response{}, err
	}
	_, err = server.SendChord(chord, asked.Concurrency)
	reply.UUIDs = append(reply.UUIDs, chord.Callback.UUID)
	return reply, err
}

// schedule registers what this program's scheduler sends from now on, at its times.
func schedule(server *Server, asked request) error {
	spec, name, signatures := asked.Spec, asked.Name, asked.Signatures
	switch asked.Kind {
	case "task":
		return server.RegisterPeriodicTask(spec, name, signatures[0])
	case "chain":
		return server.RegisterPeriodicChain(spec, name, signatures...)
	case "group":
		return server.RegisterPeriodicGroup(spec, name, asked.Concurrency, signatures...)
	case "chord":
		return server.RegisterPeriodicChord(spec, name, asked.Concurrency, asked.Callback, signatures...)
	}
	return fmt.Errorf("kind %q: give task, chain, group or chord", asked.Kind)
}

// get waits for results as a Go caller does. A chord's last id is its callback's.
func get(server *Server, asked request) (response, error) {
	const sleep = 5 * time.Millisecond
	timeout := time.Duration(asked.TimeoutMS) * time.Millisecond
	signatures := make([]*Signature, len(asked.UUIDs))
	for i, uuid := range asked.UUIDs {
		signatures[i] = &Signature{UUID: uuid}
	}
	var reply response
	switch last := len(signatures) - 1; asked.Op {
	case "get_chain":
		result := newChainResult(signatures, server.GetBackend())
		values, err := result.GetWithTimeout(timeout, sleep)
		reply.Answers = []answer{newAnswer(values, err)}
	case "get_chord":
		result := newChordResult(signatures[:last], signatures[last], server.GetBackend())
		// GetWithTimeout gives neither a result nor an error when a member failed.
		values, err := withTimeout(timeout, func() ([]reflect.Value, error) { return result.Get(sleep) })
		reply.Answers = []answer{newAnswer(values, err)}
	default:
		until := time.Now().Add(timeout)
		for _, signature := range signatures {
			result := newAsyncResult(signature, server.GetBackend())
			values, err := result.GetWithTimeout(time.Until(until), sleep)
			reply.Answers = append(reply.Answers, newAnswer(values, err))
		}
	}
	return reply, nil
}

// look reads what Machinery lets a program see.
func look(server *Server, asked request) (response, error) {
	var reply response
	var err error
	switch asked.Op {
	case "state":
		for _, uuid := range asked.UUIDs {
			state, err := server.GetBackend().GetState(uuid)
			if err != nil {
				return reply, fmt.Errorf("state of %s: %w", uuid, err)
			}
			reply.States = append(reply.States, state)
		}
	case "completed":
		reply.Completed, err = server.GetBackend().GroupCompleted(asked.Group, asked.Count)
	case "group_states":
		reply.States, err = server.GetBackend().GroupTaskStates(asked.Group, asked.Count)
	case "pending":
		reply.Signatures, err = server.GetBroker().GetPendingTasks(asked.Queue)
	case "delayed":
		reply.Signatures, err = server.GetBroker().GetDelayedTasks()
	default:
		err = fmt.Errorf("unknown request %q", asked.Op)
	}
	return reply, err
}

func withTimeout(
	timeout time.Duration, get func() ([]reflect.Value, error),
) ([]reflect.Value, error) {
	type got struct {
		values []reflect.Value
		err    error
	}
	done := make(chan got, 1)
	go func() {
		values, err := get()
		done <- got{values, err}
	}()
	select {
	case found := <-done:
		return found.values, found.err
	case <-time.After(timeout):
		return nil, errors.New("Timeout reached")
	}
}

func newAnswer(values []reflect.Value, err error) answer {
	if err != nil {
		return answer{Error: err.Error()}
	}
	found := answer{Types: []string{}, Values: []interface{}{}}
	for _, value := range values {
		found.Types = append(found.Types, value.Type().String())
		found.Values = append(found.Values, value.Interface())
	}
	return found
}

func uuidsOf(signatures []*Signature) []string {
	uuids := make([]string, len(signatures))
	for i, signature := range signatures {
		uuids[i] = signature.UUID
	}
	return uuids
}
