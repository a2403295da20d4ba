package main

import (
	"encoding/json"
	"fmt"
	"strings"
)

// decode reads JSON with its numbers kept as they are written.
func decode(text string, into interface{}) error {
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.UseNumber()
	return decoder.Decode(into)
}

// giveTypes turns the arguments of a signature and of its callbacks into Go values of the types
// they name, as a Go program would have given them.
func giveTypes(signature *Signature) error {
	if signature == nil {
		return nil
	}
	for i, arg := range signature.Args {
		value, err := reflectValue(arg.Type, arg.Value)
		if err != nil {
			return fmt.Errorf("argument %d of %s: %w", i, signature.Name, err)
		}
		signature.Args[i].Value = value.Interface()
	}
	for _, callback := range append(append([]*Signature{}, signature.OnSuccess...), signature.OnError...) {
		if err := giveTypes(callback); err != nil {
			return err
		}
	}
	return giveTypes(signature.ChordCallback)
}
