package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/scheduler/placement"
)

// TestUpgrade runs the commands of an operator's upgrade: check, sync, check. Then it runs the audit of claims.
func TestUpgrade(t *testing.T) { //nolint:paralleltest // other tests of the package set the default logger
	dir := t.TempDir()
	url := "sqlite://" + filepath.ToSlash(filepath.Join(dir, "nova.db"))
	conf := filepath.Join(dir, "nova.conf")
	if err := os.WriteFile(conf, []byte("[DEFAULT]\nservice_down_time = 2\nreport_interval = 1\n[database]\nconnection = "+url+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(code int, want string, args ...string) {
		t.Helper()
		var out bytes.Buffer
		err := run(t.Context(), &out, append(args, "--config-file", conf)...)
		got := exitCode(err)
		if got != code || !strings.Contains(out.String(), want) {
			t.Errorf("%v: exit code %d, %q; want %d, %q", args, got, out.String(), code, want)
		}
	}
	run(2, "run nova-mini db sync --config-file "+conf, "upgrade", "check")
	run(0, "the database has the schema of this version", "db", "sync")
	run(0, "Schema    Success", "upgrade", "check")

	d, err := db.Open(t.Context(), db.Config{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	s := store.New(d)
	if err := s.ReportHost(t.Context(), &compute.HostReport{Host: "node-1", Driver: "fake", Resources: compute.Resources{VCPUs: 4, MemoryMiB: 4, DiskGiB: 4}}, store.Ratios{CPU: 1, RAM: 1, Disk: 1}); err != nil {
		t.Fatal(err)
	}
	run(0, "Services  Success", "upgrade", "check")
	d.MustExecContext(t.Context(), "UPDATE members SET seen_at = ?", time.Now().Add(-time.Hour))
	run(1, "Services  Warning  no heartbeat for 2s: nova-compute on node-1", "upgrade", "check")

	run(0, "no differences\n", "placement", "audit")
	if err := placement.NewSQL(d).Claim(t.Context(), placement.Claim{Consumer: "gone", Allocations: []placement.Allocation{
		{Provider: "node-1", Resources: placement.Resources{"VCPU": 2, "DISK_GB": 1}},
	}}); err != nil {
		t.Fatal(err)
	}
	const line = "orphaned  gone: DISK_GB 1 VCPU 2 on node-1  "
	run(0, "no differences\n", "placement", "audit", "--repair") // the claim is younger than the default of --min-age
	run(3, line+"found\n", "placement", "audit", "--min-age", "0s")
	run(4, line+"repaired\n", "placement", "audit", "--min-age", "0s", "--repair")
	run(0, "no differences\n", "placement", "audit")
}
