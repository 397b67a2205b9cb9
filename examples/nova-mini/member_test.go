package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
)

// TestMemberCommands: member list shows the process that owns a host. After member remove, another process can claim the host.
func TestMemberCommands(t *testing.T) { //nolint:paralleltest // other tests of the package set the default logger
	dbtest.EachURL(t, func(t *testing.T, url string) {
		conf := filepath.Join(t.TempDir(), "nova.conf")
		if err := os.WriteFile(conf, []byte("[database]\nconnection = "+url+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		d, err := db.Open(t.Context(), db.Config{URL: url})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = d.Close() }()
		s := store.New(d)
		if err := db.Migrate(t.Context(), d, store.Migrations()...); err != nil {
			t.Fatal(err)
		}
		first, second := compute.Process{ID: "i-1", Process: "process 7 on machine m1"}, compute.Process{ID: "i-2", Process: "process 8 on machine m2"}
		claim := func(p compute.Process) *compute.ClaimHostRequest {
			return &compute.ClaimHostRequest{Host: "node-1", Instance: p, Interfaces: map[string][]string{"compute": {"1.4", "2.0"}}}
		}
		if err := s.ClaimHost(t.Context(), claim(first), time.Minute); err != nil {
			t.Fatal(err)
		}
		run := func(args ...string) (string, error) {
			var out bytes.Buffer
			err := run(t.Context(), &out, append(args, "--config-file", conf)...)
			return out.String(), err
		}
		if out, err := run("member", "list"); err != nil || !strings.Contains(out, "nova-compute  node-1  up") || !strings.Contains(out, first.Process) || !strings.Contains(out, "compute 1.4 2.0") {
			t.Errorf("member list: %v\n%s", err, out)
		}
		if _, err := run("member", "remove", "nova-compute", "node-1"); exitCode(err) != 1 || !strings.Contains(err.Error(), "--force") {
			t.Errorf("remove of a service that is up: %v", err)
		}
		if err := s.ClaimHost(t.Context(), claim(second), time.Minute); !errors.Is(err, fault.Unavailable) {
			t.Errorf("claim by another process: %v", err)
		}
		if out, err := run("member", "remove", "--force", "nova-compute", "node-1"); err != nil || !strings.Contains(out, "node-1 is removed") {
			t.Errorf("remove: %v %s", err, out)
		}
		if err := s.ClaimHost(t.Context(), claim(second), time.Minute); err != nil {
			t.Errorf("claim after the removal: %v", err)
		}
		if _, err := run("member", "remove", "--force", "nova-compute", "node-9"); exitCode(err) != 1 || !strings.Contains(err.Error(), "node-9") {
			t.Errorf("remove of a service that does not exist: %v", err)
		}
		if _, err := run("member", "remove", "nova-compote", "node-1"); exitCode(err) != 2 || !strings.Contains(err.Error(), "nova-compute") {
			t.Errorf("a kind that does not exist: %v", err)
		}
	})
}
