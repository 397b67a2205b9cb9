package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

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
	return errs.String(), failureOf(code, errs.String())
}

// failureOf returns nil for the exit code 0, and otherwise a *failure with the last message of the text on standard error.
func failureOf(code int, errs string) error {
	if code == 0 {
		return nil
	}
	text := "\n" + errs
	if at := strings.LastIndex(text, "\nnova-mini: "); at >= 0 {
		text = text[at+len("\nnova-mini: "):]
	}
	return &failure{code, strings.TrimSpace(text)}
}

// startLog keeps the text on standard error. It stops the program when the log says that a service has started, or tries to start.
type startLog struct {
	bytes.Buffer

	stop context.CancelFunc
}

func (l *startLog) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte("waiting for a part to start")) || bytes.Contains(p, []byte("msg=ready")) {
		l.stop()
	}
	return l.Buffer.Write(p)
}

// runRefused is like run, for arguments with which no service may start. If a service starts, runRefused stops the service at once, and returns an error that
// says so. It does the same if the program has not ended after 30 s.
func runRefused(ctx context.Context, out io.Writer, args ...string) error {
	ctx, stop := context.WithTimeout(ctx, 30*time.Second)
	defer stop()
	log := &startLog{stop: stop}
	code := component.Run(ctx, novaComponent(), args, os.Environ(), out, log)
	if ctx.Err() != nil {
		first, _, _ := strings.Cut(log.String(), "\n")
		return fmt.Errorf("nova-mini %s was accepted: the program did not end by itself, and its log begins with %s", strings.Join(args, " "), first)
	}
	return failureOf(code, log.String())
}

// exitCode returns the exit code of an error of run.
func exitCode(err error) int {
	if f, ok := errors.AsType[*failure](err); ok {
		return f.code
	}
	return 0
}
