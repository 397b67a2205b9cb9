package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/service/operation"
)

// TestOperationCommand: the commands list, show, cancel and retry operations.
func TestOperationCommand(t *testing.T) { //nolint:paralleltest // the others set the default logger
	dir := t.TempDir()
	url := "sqlite://" + filepath.ToSlash(filepath.Join(dir, "nova.db"))
	conf := filepath.Join(dir, "nova.conf")
	if err := os.WriteFile(conf, []byte("[database]\nconnection = "+url+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(wantErr string, args ...string) string {
		t.Helper()
		var out bytes.Buffer
		cmd := newCommand(&out)
		cmd.SetArgs(append(args, "--config-file", conf))
		err := cmd.ExecuteContext(t.Context())
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
	if got := run("", "operation", "list", "--open", "--server", "s1"); !strings.Contains(got, id+"  server.create  s1      running") {
		t.Errorf("list: %s", got)
	}
	if got := run("", "operation", "list", "--state", "failed"); strings.Contains(got, id) {
		t.Errorf("list of failed operations: %s", got)
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
