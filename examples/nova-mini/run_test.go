package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"

	"github.com/armature-go/armature/component"
)

// failure is the error of a program that has ended with an exit code other than 0.
type failure struct {
	code int
	text string // the last message on standard error, without the log before it
}

func (f *failure) Error() string { return f.text }

// run runs the program with these arguments until it ends, and returns a *failure if the exit code is not 0. It writes the output to out.
func run(ctx context.Context, out io.Writer, args ...string) error {
	_, err := runLogged(ctx, out, args...)
	return err
}

// runLogged is like run, and also returns the text that the program writes to standard error.
func runLogged(ctx context.Context, out io.Writer, args ...string) (log string, err error) {
	var errs bytes.Buffer // needs no lock: it is read after Run has returned
	code := component.Run(ctx, novaComponent(), args, os.Environ(), out, &errs)
	if code == 0 {
		return errs.String(), nil
	}
	text := "\n" + errs.String()
	if at := strings.LastIndex(text, "\nnova-mini: "); at >= 0 {
		text = text[at+len("\nnova-mini: "):]
	}
	return errs.String(), &failure{code, strings.TrimSpace(text)}
}

// exitCode returns the exit code of an error of run.
func exitCode(err error) int {
	if f, ok := errors.AsType[*failure](err); ok {
		return f.code
	}
	return 0
}
