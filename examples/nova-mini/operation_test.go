package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/service/operation"
)

// TestOperationCommand tests the commands that list, show, cancel and retry operations.
func TestOperationCommand(t *testing.T) { //nolint:paralleltest // other tests of the package set the default logger
	dir := t.TempDir()
	url := "sqlite://" + filepath.ToSlash(filepath.Join(dir, "nova.db"))
	conf := filepath.Join(dir, "nova.conf")
	if err := os.WriteFile(conf, []byte("[database]\nconnection = "+url+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(wantErr string, args ...string) string {
		t.Helper()
		var out bytes.Buffer
		err := run(t.Context(), &out, append(args, "--config-file", conf)...)
		if wantErr == "" && err != nil || wantErr != "" && (err == nil || !strings.Contains(err.Error(), wantErr)) {
			t.Errorf("%v: %v, want %q", args, err, wantErr)
		}
		return out.String()
	}
	run("", "db", "sync")
	d, err := db.Open(t.Context(), db.Config{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	s := store.New(d)
	if err := s.CreateServer(t.Context(), &store.Server{ID: "s1", Name: "s1", ProjectID: "p", RequestID: "req-1"}); err != nil {
		t.Fatal(err)
	}
	list, err := s.Operations().List(t.Context(), operation.Filter{})
	if err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	id := list[0].ID
	if got := run("", "operation", "list", "--open", "--server", "s1"); !strings.Contains(got, id+"  server.create  s1        running") {
		t.Errorf("list: %s", got)
	}
	if got := run("", "operation", "list", "--state", "failed"); strings.Contains(got, id) {
		t.Errorf("list of failed operations: %s", got)
	}
	if got := run("", "operation", "list", "--unknown"); strings.Contains(got, id) {
		t.Errorf("list of operations that no conductor knows: %s", got)
	}
	// A conductor that does not know server.create finds the operation.
	other := operation.NewRunner(operation.RunnerConfig{Store: s.Operations(), Host: "h", Lease: 100 * time.Millisecond, Poll: 10 * time.Millisecond})
	operation.Handle(other, operation.Kind[struct{}]{Name: "other"}, operation.Step[struct{}]{Name: "a", Do: func(context.Context, *operation.Op, *struct{}) error { return nil }})
	if err := other.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	waittest.Until(t, "an operation that no conductor knows", func() bool { return other.Stats().Unknown == 1 })
	if err := other.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := run("", "operation", "list", "--unknown"); !strings.Contains(got, id+"  server.create  s1        running  unknown operation") {
		t.Errorf("list of operations that no conductor knows: %s", got)
	}
	run("is running", "operation", "retry", id)
	if got := run("", "operation", "cancel", "--reason", "too\x1b[2J late", id); got != id+" is canceled\n" {
		t.Errorf("cancel: %q", got)
	}
	run("is undoing", "operation", "cancel", id)
	if got := run("", "operation", "list"); !strings.Contains(got, "undoing") || !strings.Contains(got, "too [2J late") {
		t.Errorf("list: %q", got)
	}
	if got := run("", "operation", "show", id); !strings.Contains(got, `"kind": "server.create"`) || !strings.Contains(got, `"error_code": "Canceled"`) {
		t.Errorf("show: %s", got)
	}
	run("operation none does not exist", "operation", "show", "none")
}
