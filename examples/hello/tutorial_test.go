package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/service/config"
)

// TestTutorial: each block of code in docs/tutorial.md is a part of this program, the configuration file in it is accepted,
// and the commands in it do what the tutorial says.
func TestTutorial(t *testing.T) {
	t.Parallel()
	guide, err := os.ReadFile("../../docs/tutorial.md")
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile("main.go")
	if err != nil {
		t.Fatal(err)
	}
	code := string(program)
	blocks := map[string][]string{}
	for _, b := range regexp.MustCompile("(?s)```([a-z]+)\n(.*?)```").FindAllStringSubmatch(string(guide), -1) {
		blocks[b[1]] = append(blocks[b[1]], b[2])
	}
	for _, b := range blocks["go"] {
		if !strings.Contains(code, b) {
			t.Errorf("the program does not have this block:\n%s", b)
		}
	}
	if len(blocks["go"]) < 8 || len(blocks["ini"]) != 1 || len(blocks["console"]) != 3 {
		t.Fatalf("there are %d blocks of code, %d files, %d commands", len(blocks["go"]), len(blocks["ini"]), len(blocks["console"]))
	}
	file := filepath.Join(t.TempDir(), "hello-1.conf")
	if err := os.WriteFile(file, []byte(blocks["ini"][0]), 0o600); err != nil {
		t.Fatal(err)
	}
	var o options
	if err := config.Load(&o, config.Source{Files: []string{file}}); err != nil || o.Database.Connection == "" || o.TransportURL == "" {
		t.Errorf("the file: %+v, %v", o, err)
	}
	if _, err := exec.LookPath("curl"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("curl is not installed: the commands cannot be tried")
		}
		t.Skip("curl is not installed")
	}
	addr := processes(t, &setup{host: "h1", connection: dbtest.SQLite(t)})[0]
	id := ""
	for i, want := range []string{"202 Accepted", `"name":"Ada"`, "'' is too short"} {
		cmd := strings.ReplaceAll(strings.ReplaceAll(blocks["console"][i], "http://127.0.0.1:8780", addr), "/ID", "/"+id)
		out, err := exec.CommandContext(t.Context(), "sh", "-euc", cmd).CombinedOutput()
		at := regexp.MustCompile(`(?m)^Location: /v1/greetings/(\S+)`).FindSubmatch(out)
		if err != nil || !strings.Contains(string(out), want) || i == 0 && at == nil {
			t.Errorf("%s says %s, %v; want %s", cmd, out, err, want)
		}
		if at != nil {
			id = string(at[1])
		}
	}
}
