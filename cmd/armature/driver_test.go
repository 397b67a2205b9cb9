package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/internal/waittest"
)

// needPython skips the test if the packages that a driver in Python needs are not installed.
func needPython(t *testing.T) {
	t.Helper()
	if err := exec.CommandContext(t.Context(), "/usr/bin/python3", "-c", "import grpc, google.protobuf").Run(); err != nil && os.Getenv("CI") == "" {
		t.Skip("needs the packages python3-grpcio and python3-protobuf")
	}
}

// TestPythonNames: the keywords of the installed Python, and the modules of its standard library, are refused as names of drivers in Python.
func TestPythonNames(t *testing.T) {
	t.Parallel()
	needPython(t)
	const list = "import keyword, sys\nprint(*keyword.kwlist, *sys.stdlib_module_names)"
	out, err := exec.CommandContext(t.Context(), "/usr/bin/python3", "-c", list).Output()
	names := slices.DeleteFunc(strings.Fields(string(out)), func(name string) bool { return !nameRule.MatchString(name) })
	if err != nil || len(names) < 200 {
		t.Fatal(names, err)
	}
	dir := filepath.Join(t.TempDir(), "new")
	for _, name := range names {
		if code, out := armature(t, "new", "driver", name, "--lang", "python", "--replace", clone(t), "--dir", dir); code != 2 || !strings.Contains(out, "of Python") {
			t.Errorf("%s: %d %s", name, code, out)
		}
	}
}

// TestPublished: a driver in Python that is written by a published version uses this version.
func TestPublished(t *testing.T) {
	t.Parallel()
	d := newDriver{project: project{name: "lake", version: "v1.2.3"}, lang: "python"}
	content, err := d.render()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"\nARMATURE ?= go run github.com/armature-go/armature/cmd/armature@v1.2.3\n",
		"\nLIBRARY  ?= $(shell go mod download -json github.com/armature-go/armature@v1.2.3 | sed -n 's/.*\"Dir\": \"\\(.*\\)\".*/\\1/p')/python\n",
	} {
		if !strings.Contains(string(content["Makefile"]), want) {
			t.Errorf("%q is missing in:\n%s", want, content["Makefile"])
		}
	}
}

// TestNewDriver: a driver that armature writes is built and passes its own tests, among them the rules with a program that is killed in the middle
// of each call. Then a worker replaces the running program by that of the next release, while a client uses it.
func TestNewDriver(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("-short: it builds programs; make test runs it")
	}
	for lang, tt := range map[string]struct {
		args    []string
		version string // the file that has the version of the driver
	}{
		"go":     {[]string{"--module", "example.org/acme/lake"}, "lake.go"},
		"python": {nil, "lake/driver.py"},
	} {
		t.Run(lang, func(t *testing.T) {
			t.Parallel()
			if lang == "python" {
				needPython(t)
			}
			dir := filepath.Join(t.TempDir(), "the lake") // make needs quotes
			if code, out := armature(t, append(tt.args, "new", "driver", "lake", "--lang", lang, "--replace", clone(t), "--dir", dir)...); code != 0 {
				t.Fatal(out)
			}
			out := runMake(t, dir, "test")
			for _, want := range []string{"crash in the middle  PASS", " rules kept, 0 broken, "} {
				if !strings.Contains(out, want) {
					t.Errorf("%q is missing in the output of make test:\n%s", want, out)
				}
			}
			if strings.Contains(out, "acme.go") || strings.Contains(out, "apex") {
				t.Errorf("make test uses the name of the example:\n%s", out)
			}
			built := filepath.Join(dir, "bin/armature-compute-lake")
			program := filepath.Join(t.TempDir(), "armature-compute-lake")
			first := install(t, built, program)
			changeVersion(t, filepath.Join(dir, tt.version))
			runMake(t, dir, "build")
			replaceProgram(t, program, first, func() string { return install(t, built, program) })
		})
	}
}

func runMake(t *testing.T, dir, target string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "make", target)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("make %s: %v\n%s", target, err, out)
	}
	return string(out)
}

// changeVersion changes the version of a driver from 1.0 to 2.0.
func changeVersion(t *testing.T, file string) {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil || strings.Count(string(raw), `"1.0"`) != 1 {
		t.Fatalf("%v: the version is not found in %s", err, file)
	}
	if err := os.WriteFile(file, []byte(strings.Replace(string(raw), `"1.0"`, `"2.0"`, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
}

// install copies a program to its place, as mv does, and returns the checksum.
func install(t *testing.T, built, program string) string {
	t.Helper()
	raw, err := os.ReadFile(built)
	if err == nil {
		err = errors.Join(os.WriteFile(program+".new", raw, 0o700), os.Rename(program+".new", program))
	}
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:])
}

// replaceProgram runs the program, and replaces it by the program that upgrade installs, while a client creates servers. The new program does not
// take the place of the old one before the configuration has its checksum.
func replaceProgram(t *testing.T, program, sum string, upgrade func() string) {
	t.Helper()
	options, err := json.Marshal(map[string]string{"host": "h1", "dir": t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	cfg := driver.PluginConfig{Program: program, SHA256: sum, Options: options, Logger: slog.New(slog.DiscardHandler)}
	p, err := driver.Launch(t.Context(), compute.Kind, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := p.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	}()
	created, stop := spawnServers(t, p)
	work := func() {
		t.Helper()
		want := created.Load() + 5
		waittest.Until(t, "servers to be created", func() bool { return created.Load() >= want })
	}
	work()
	next := upgrade()
	if err := p.Replace(t.Context(), cfg, nil); err == nil {
		t.Error("a program with another checksum is accepted")
	}
	work()
	cfg.SHA256 = next
	if err := p.Replace(t.Context(), cfg, nil); err != nil {
		t.Fatal(err)
	}
	work()
	stop()
	info, err := p.Driver().Info(t.Context())
	if st := p.Status(); err != nil || info.Name != "lake" || info.Version != "2.0" || st.Replacements != 1 || st.Restarts != 0 {
		t.Errorf("%+v, %+v, %v", info, st, err)
	}
	list, err := p.Driver().List(t.Context())
	if err != nil || len(list) != int(created.Load()) {
		t.Errorf("%d servers, want %d: %v", len(list), created.Load(), err)
	}
}

// spawnServers creates servers until stop is called. Each call must succeed.
func spawnServers(t *testing.T, p *driver.Plugin[compute.Driver]) (created *atomic.Int64, stop func()) {
	t.Helper()
	created = new(atomic.Int64)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for n := 0; ctx.Err() == nil; n++ {
			s := compute.Spec{ID: fmt.Sprintf("00000000-0000-4000-8000-%012d", n), Name: "s", ImageRef: "image", Resources: compute.Resources{VCPUs: 1, MemoryMiB: 64, DiskGiB: 1}}
			if err := p.Driver().Spawn(context.WithoutCancel(ctx), s); err != nil {
				t.Errorf("server %d: %v", n, err)
				return
			}
			created.Add(1)
			waittest.Spend(time.Millisecond, "the time between two calls")
		}
	})
	stop = func() {
		cancel()
		wg.Wait()
	}
	t.Cleanup(stop)
	return created, stop
}
