package main

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// printed is an output of package internal/compare, between other lines of go test.
const printed = `goos: linux

work            callers  by                                per s  ratio  p50      ratio  
call with JSON  1        amqp091-go, mandatory, confirmed  2000   1.00   400.5µs  1.00   
call with JSON  1        rpc on amqpbus                    1500   0.75   600µs    1.50   
BenchmarkCompare/json-2 	       1	5215646316 ns/op
PASS
`

func TestParse(t *testing.T) {
	t.Parallel()
	got, err := parseRows([]byte(printed))
	want := []row{
		{work: "call with JSON", callers: 1, by: "amqp091-go, mandatory, confirmed", rate: 2000, ratio: 1, p50: 400500 * time.Nanosecond},
		{work: "call with JSON", callers: 1, by: "rpc on amqpbus", rate: 1500, ratio: 0.75, p50: 600 * time.Microsecond},
	}
	if err != nil || !cmp.Equal(got, want, cmp.AllowUnexported(row{})) {
		t.Errorf("%v, %+v", err, got)
	}
	const line = "| call with JSON | 1 | rpc on amqpbus | 1500 | 0.75 | 600µs |\n"
	if out := formatTable(got); !strings.HasSuffix(out, line) {
		t.Errorf("%s does not end with %s", out, line)
	}
	for _, wrong := range []string{"call  one  x  1  1  1s  1", "call  1  x  1  1  1 s  1"} {
		if _, err := parseRows([]byte(wrong)); err == nil || !strings.Contains(err.Error(), wrong) {
			t.Errorf("%q: %v", wrong, err)
		}
	}
}

// TestShort: each line of the short table is measured by a set, and a line that was not measured is an error that names it.
func TestShort(t *testing.T) {
	t.Parallel()
	var rows []row
	for _, s := range short {
		of := -1
		for i := range sets {
			if sets[i].title == s.title {
				of = i
			}
		}
		if of < 0 {
			t.Fatalf("%s: no set has the title %q", s.name, s.title)
		}
		list := []row{{work: s.work, callers: s.callers, by: s.by, rate: 50, ratio: 0.5, p50: time.Millisecond}}
		if s.raw != "" {
			list = append(list, row{work: s.work, callers: s.callers, by: s.raw, rate: 100, ratio: 1})
		}
		kept := sets[of].reported(list)
		if len(kept) != len(list) {
			t.Errorf("%s: the set %q does not report it", s.name, s.title)
		}
		rows = append(rows, kept...)
	}
	out, err := shortTable(rows)
	if err != nil || !strings.Contains(out, "| call over NATS | 16 | 50 | 1ms | nats.go request, and JSON: 100 | 0.50 |\n") {
		t.Errorf("%v: %s", err, out)
	}
	if _, err := shortTable(rows[1:]); err == nil || !strings.Contains(err.Error(), "rpc on membus with 16 callers was not measured") {
		t.Error(err)
	}
	if _, err := replaceShort("a text without the table", out); err == nil {
		t.Error("a text without the lines around the table is accepted")
	}
	got, err := replaceShort("before\n"+shortBegin+"old\n"+shortEnd+"after\n", "new\n")
	if want := "before\n" + shortBegin + "new\n" + shortEnd + "after\n"; err != nil || got != want {
		t.Errorf("%q, %v", got, err)
	}
}

// TestReadme: the short table of README.md is that of docs/benchmarks.md.
func TestReadme(t *testing.T) {
	t.Parallel()
	var tables []string
	for _, name := range []string{"../../README.md", "../../docs/benchmarks.md"} {
		raw, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(raw), shortBegin)
		table, _, found := strings.Cut(rest, shortEnd)
		if !found || strings.Count(table, "\n| ") != len(short) || !strings.Contains(table, " cores, ") {
			t.Errorf("%s has no short table of %d lines: run make bench-report", name, len(short))
		}
		tables = append(tables, table)
	}
	if diff := cmp.Diff(tables[1], tables[0]); diff != "" {
		t.Errorf("docs/benchmarks.md (-), README.md (+): run make bench-report\n%s", diff)
	}
}

// TestStart: the program starts. Its flags have other defaults than those of package compare, which it links.
func TestStart(t *testing.T) {
	t.Parallel()
	out, err := exec.CommandContext(t.Context(), "go", "run", ".", "-h").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "rounds of each comparison (default 3)") {
		t.Errorf("%v: %s", err, out)
	}
}
