package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/examples/nova-mini/store"
)

// TestOperating: in docs/operating.md, the configuration file is accepted, the commands in blocks `console` work, and the program
// prints the errors in blocks `errors`. Package e2e tests the commands in blocks `sh`.
func TestOperating(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile("../../docs/operating.md")
	if err != nil {
		t.Fatal(err)
	}
	guide := string(raw)
	blocks := map[string][]string{}
	for _, b := range regexp.MustCompile("(?s)```([a-z]+)\n(.*?)```").FindAllStringSubmatch(guide, -1) {
		blocks[b[1]] = append(blocks[b[1]], b[2])
	}
	if len(blocks["ini"]) != 1 || len(blocks["console"]) != 4 {
		t.Fatalf("%d files, %d blocks of commands", len(blocks["ini"]), len(blocks["console"]))
	}
	dir, url := t.TempDir(), dbtest.SQLite(t)
	d, err := db.Open(t.Context(), db.Config{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := db.Migrate(t.Context(), d, store.Migrations()...); err != nil {
		t.Fatal(err)
	}
	secret := filepath.Join(dir, "url")
	file := filepath.Join(dir, "nova-mini.conf")
	text := strings.Replace(blocks["ini"][0], "/etc/nova-mini/database-url", secret, 1)
	for path, text := range map[string]string{secret: url + "\n", file: text} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	console := func(line string) string {
		t.Helper()
		var out bytes.Buffer
		if err := run(t.Context(), &out, append(strings.Fields(line)[1:], "--config-file", file)...); err != nil {
			t.Errorf("%s: %v", line, err)
		}
		return out.String()
	}
	for line := range strings.SplitSeq(strings.TrimSpace(strings.Join(blocks["console"], "")), "\n") {
		out := console(line)
		if out == "" {
			t.Errorf("%s prints nothing", line)
		}
		if strings.Contains(line, "explain") && !strings.Contains(out, "denies\n") { // with exit code 0: console fails the test on an error
			t.Errorf("%s: %s", line, out)
		}
	}
	empty := filepath.Join(dir, "empty.conf") // so that the command has no options even if this machine has a default file
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	got := strings.Split(fmt.Sprint(run(t.Context(), io.Discard, "config", "validate", "--config-file", empty)), "\n")
	for line := range strings.Lines(strings.Join(blocks["errors"], "")) {
		if !slices.Contains(got, strings.TrimSpace(line)) {
			t.Errorf("the guide has the error %s, and the program has %q", line, got)
		}
	}
	if len(blocks["errors"]) != 1 {
		t.Errorf("the guide has %d blocks of errors, want 1", len(blocks["errors"]))
	}
	sample := console("nova-mini config sample")
	for _, option := range []string{"strict", "token_cache_time", "admin_listen", "drain_delay", "graceful_shutdown_timeout", "auth_strategy", "otlp_endpoint"} {
		if !strings.Contains(guide, option) || !strings.Contains(sample, "#"+option+" = ") {
			t.Errorf("option %s is not in the guide, or not in nova-mini", option)
		}
	}
	help := func(args ...string) string {
		var out bytes.Buffer
		if err := run(t.Context(), &out, append(args, "--help")...); err != nil {
			t.Error(err)
		}
		return out.String()
	}
	for _, of := range [][2]string{{"operation", "show"}, {"operation", "cancel"}, {"operation", "retry"}, {"placement", "audit"}, {"dlq", "list"}, {"upgrade", "check"}} {
		if text := help(of[0]); !strings.Contains(text, "  "+of[1]) {
			t.Errorf("command %s %s does not exist:\n%s", of[0], of[1], text)
		}
	}
}
