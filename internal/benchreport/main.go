// Benchreport measures a named set of the benchmarks and writes docs/benchmarks.md. It also writes the table "In short" of that file into
// README.md. `make bench-report` starts RabbitMQ, NATS and MariaDB, and runs this program.
package main

import (
	"bufio"
	"bytes"
	"context"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/nats-io/nats.go"
	"github.com/rabbitmq/amqp091-go"

	"github.com/armature-go/armature/internal/compare"
	"github.com/armature-go/armature/internal/testenv"
)

// set has benchmarks of one package. They print their results with package internal/compare.
type set struct {
	title, pkg, bench string
	what              []string // the beginnings of the names of the works that are reported; nil: all works
	callers           []int    // nil: all
}

var sets = []set{
	{title: "Calls in one process", pkg: "./rpc/membus", bench: "Compare"},
	{title: "Calls and fanouts over RabbitMQ", pkg: "./rpc/amqpbus", bench: "Compare/^(json|fanoutjson)$", callers: []int{1, 16, 64}},
	{title: "Calls over NATS", pkg: "./rpc/natsbus", bench: "Compare/^(json|cast)$"},
	{title: "Decisions of a scheduler", pkg: "./scheduler/placement", bench: "Compare/^rank$", what: []string{"1000 hosts", "100000 hosts"}},
	{title: "Claims", pkg: "./scheduler/placement", bench: "Compare/^claim$"},
	{title: "Operations", pkg: "./service/operation", bench: "Operation"},
	{title: "Calls of a driver's program", pkg: "./driver", bench: "Compare"},
	{title: "The start of a process", pkg: "./component", bench: "Start"},
}

// short are the lines of the table "In short". Each has a name, the title of the set, the work, the number of callers, the contender without the
// package, and the contender with it.
var short = []struct {
	name, title, work string
	callers           int
	raw, by           string // raw is the contender to which the ratio refers; "": the line has no ratio
}{
	{"call in one process", "Calls in one process", "call with JSON", 16, "", "rpc on membus"},
	{"call over RabbitMQ", "Calls and fanouts over RabbitMQ", "call with JSON", 16, "amqp091-go, replies mandatory and confirmed, too", "rpc on amqpbus"},
	{"fanout to 10 servers over RabbitMQ", "Calls and fanouts over RabbitMQ", "fanout to 10 with JSON", 16, "amqp091-go", "rpc on amqpbus"},
	{"call over NATS", "Calls over NATS", "call with JSON", 16, "nats.go request, and JSON", "rpc on natsbus"},
	{"decision among 1,000 hosts, 8 filters and 4 weighers", "Decisions of a scheduler", "1000 hosts, 8 filters and 4 weighers, every filter rejects some", 1, "loop by hand", "Rank, counts only"},
	{"decision among 100,000 hosts", "Decisions of a scheduler", "100000 hosts, 8 filters and 4 weighers, every filter rejects some", 1, "loop by hand", "Rank, counts only"},
	{"claim on MariaDB", "Claims", "claim on MariaDB, 200 hosts", 16, "UPDATE, INSERT", "Store.Claim of one class"},
	{"operation of three steps on MariaDB", "Operations", "operation of three steps", 16, "bare SQL", "operation"},
	{"call of a driver's program", "Calls of a driver's program", "call", 64, "go-plugin", "driver"},
	{"start and stop of a process with all services", "The start of a process", "start and stop, bus in memory and SQLite", 1, "", "component"},
}

// row is one line of a comparison.
type row struct {
	title   string // the title of the set
	work    string
	callers int
	by      string
	rate    float64 // operations per second
	ratio   float64 // the rate divided by the rate of the first line of the work; the median of the rounds
	p50     time.Duration
}

var columns = regexp.MustCompile(`\s{2,}`)

// parseRows returns the rows that package internal/compare has printed.
func parseRows(out []byte) (rows []row, err error) {
	lines := bufio.NewScanner(bytes.NewReader(out))
	for lines.Scan() {
		f := columns.Split(strings.TrimSpace(lines.Text()), -1)
		if len(f) != 7 || f[0] == "work" {
			continue
		}
		var r row
		var errs [4]error
		r.work, r.by = f[0], f[2]
		r.callers, errs[0] = strconv.Atoi(f[1])
		r.rate, errs[1] = strconv.ParseFloat(f[3], 64)
		r.ratio, errs[2] = strconv.ParseFloat(f[4], 64)
		r.p50, errs[3] = time.ParseDuration(f[5])
		if err := errors.Join(errs[:]...); err != nil {
			return nil, fmt.Errorf("line %q: %w", lines.Text(), err)
		}
		rows = append(rows, r)
	}
	return rows, lines.Err()
}

// formatTable returns the rows as Markdown.
func formatTable(rows []row) string {
	var b strings.Builder
	b.WriteString("| work | callers | by | per second | ratio | median |\n|---|---|---|---|---|---|\n")
	for _, r := range rows {
		fmt.Fprintf(&b, "| %s | %d | %s | %s | %.2f | %v |\n", r.work, r.callers, r.by, compare.Rate(r.rate), r.ratio, r.p50)
	}
	return b.String()
}

// shortTable returns the table "In short". The error names a line that was not measured.
func shortTable(rows []row) (string, error) {
	find := func(title, work string, callers int, by string) (row, error) {
		for _, r := range rows {
			if r.title == title && r.work == work && r.callers == callers && r.by == by {
				return r, nil
			}
		}
		return row{}, fmt.Errorf("%s: %s by %s with %d callers was not measured", title, work, by, callers)
	}
	var b strings.Builder
	b.WriteString("| work | callers | per second | median | without the package | ratio |\n|---|---|---|---|---|---|\n")
	for _, s := range short {
		ours, err := find(s.title, s.work, s.callers, s.by)
		if err != nil {
			return "", err
		}
		alone, ratio := "-", "-"
		if s.raw != "" {
			raw, err := find(s.title, s.work, s.callers, s.raw)
			if err != nil {
				return "", err
			}
			alone, ratio = s.raw+": "+compare.Rate(raw.rate), fmt.Sprintf("%.2f", ours.ratio/raw.ratio)
		}
		fmt.Fprintf(&b, "| %s | %d | %s | %v | %s | %s |\n", s.name, s.callers, compare.Rate(ours.rate), ours.p50, alone, ratio)
	}
	return b.String(), nil
}

// The lines around the table in README.md and docs/benchmarks.md.
const (
	shortBegin = "<!-- begin of the short table: make bench-report writes it -->\n"
	shortEnd   = "<!-- end of the short table -->\n"
)

// replaceShort returns a text with another short table.
func replaceShort(text, table string) (string, error) {
	before, rest, found := strings.Cut(text, shortBegin)
	_, after, closed := strings.Cut(rest, shortEnd)
	if !found || !closed {
		return "", fmt.Errorf("the lines %q and %q are missing", shortBegin, shortEnd)
	}
	return before + shortBegin + table + shortEnd + after, nil
}

func main() {
	flags := flag.NewFlagSet("benchreport", flag.ExitOnError) // package compare, for benchmarks, has global flags of the same names
	rounds := flags.Int("rounds", 3, "rounds of each comparison")
	slice := flags.Duration("slice", time.Second, "duration of each contender's run in a round")
	_ = flags.Parse(os.Args[1:]) // it ends the process after an error
	if err := writeReport(context.Background(), *rounds, *slice); err != nil {
		fmt.Fprintln(os.Stderr, "bench-report:", err)
		os.Exit(1)
	}
}

func writeReport(ctx context.Context, rounds int, slice time.Duration) error {
	at, err := describeEnvironment(ctx)
	if err != nil {
		return err
	}
	var all []row
	var details strings.Builder
	for _, s := range sets {
		rows, err := s.measure(ctx, rounds, slice)
		if err != nil {
			return err
		}
		all = append(all, rows...)
		fmt.Fprintf(&details, "\n## %s\n\n`go test -run '^$' -bench '%s' %s`\n\n%s", s.title, s.bench, s.pkg, formatTable(rows))
	}
	inShort, err := shortTable(all)
	if err != nil {
		return err
	}
	inShort += fmt.Sprintf("\nMedians of %d rounds of %v on %s.\n", rounds, slice, describeMachine())
	readme, err := os.ReadFile("README.md")
	if err != nil {
		return err
	}
	text, err := replaceShort(string(readme), inShort)
	if err != nil {
		return fmt.Errorf("README.md: %w", err)
	}
	doc := fmt.Sprintf(head, at, rounds, slice) + shortBegin + inShort + shortEnd + details.String()
	return errors.Join(
		os.WriteFile("docs/benchmarks.md", []byte(doc), 0o644), //nolint:gosec // documents are readable for all
		os.WriteFile("README.md", []byte(text), 0o644),         //nolint:gosec // as above
	)
}

const head = `# Benchmarks

This page shows what the packages cost beside the libraries below them. ` + "`make bench-report`" + ` measures and
writes it; do not edit it.

%s
Each figure is the median of %d rounds of %v, in which all contenders of a work run one after the other. Services and clients share the
machine, so absolute figures say little about other machines.

A **ratio** compares the rate of a line with the rate of the first line of the same work and number of callers. In the short table it compares with the line that is named there. The ratio is computed for each round, and the
table has the median of the rounds. So it may differ from the quotient of the two rates in the table. The first line is the library, or a loop by
hand, without the package. If a work has no such line, the first line is that of the package, and its ratio is 1. A ratio below 1 means that the line is slower
than the first line. The **median** in a table is the median time of one piece of work. While other programs load
the machine, a ratio may differ by a factor of two between two runs. Longer rounds give steadier figures: ` +
	"`make bench-report BENCHTIME=2s`" + `.

## In short

`

// measure runs the benchmarks, prints their output, and returns the rows that are reported.
func (s *set) measure(ctx context.Context, rounds int, slice time.Duration) ([]row, error) {
	args := []string{
		"test", "-run", "^$", "-bench", s.bench, "-benchtime", "1x", "-timeout", "20m", s.pkg,
		"-args", "-rounds", strconv.Itoa(rounds), "-slice", slice.String(),
	}
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	_, _ = os.Stdout.Write(out) // progress, for people
	if err != nil {
		return nil, fmt.Errorf("go %s: %w", strings.Join(args, " "), err)
	}
	rows, err := parseRows(out)
	if err == nil {
		rows = s.reported(rows)
	}
	if err == nil && len(rows) == 0 {
		err = errors.New("no results")
	}
	if err != nil {
		return nil, fmt.Errorf("go %s: %w", strings.Join(args, " "), err)
	}
	return rows, nil
}

// reported returns the rows that the set reports.
func (s *set) reported(rows []row) (out []row) {
	for _, r := range rows {
		begins, counts := s.what == nil, s.callers == nil
		for _, w := range s.what {
			begins = begins || strings.HasPrefix(r.work, w)
		}
		for _, n := range s.callers {
			counts = counts || r.callers == n
		}
		if begins && counts {
			r.title = s.title
			out = append(out, r)
		}
	}
	return out
}

// describeMachine describes this machine.
func describeMachine() string {
	return fmt.Sprintf("%s, %d cores, %s of memory, %s/%s", findInFile("/proc/cpuinfo", `model name\s*: (.*)`), runtime.NumCPU(),
		formatMemory(findInFile("/proc/meminfo", `MemTotal:\s*(\d+)`)), runtime.GOOS, runtime.GOARCH)
}

// describeEnvironment describes this machine, the commit and the services, one line each.
func describeEnvironment(ctx context.Context) (string, error) {
	commit, err := exec.CommandContext(ctx, "git", "describe", "--always", "--dirty", "--abbrev=12").Output()
	if err != nil {
		return "", fmt.Errorf("git describe: %w", err)
	}
	services, err := serviceVersions(ctx)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "- machine: %s\n", describeMachine())
	fmt.Fprintf(&b, "- load of other programs before the start: %s of %d cores\n", findInFile("/proc/loadavg", `^(\S+)`), runtime.NumCPU())
	fmt.Fprintf(&b, "- software: %s, %s\n", runtime.Version(), services)
	fmt.Fprintf(&b, "- commit: %s\n- date: %s\n", strings.TrimSpace(string(commit)), time.Now().UTC().Format(time.DateOnly))
	return b.String(), nil
}

// findInFile returns the match of an expression in a file of Linux, or "unknown".
func findInFile(file, expr string) string {
	raw, _ := os.ReadFile(file) // other systems do not have it
	if m := regexp.MustCompile(expr).FindSubmatch(raw); m != nil {
		return string(m[1])
	}
	return "unknown"
}

func formatMemory(kib string) string {
	n, err := strconv.Atoi(kib)
	if err != nil {
		return kib
	}
	return fmt.Sprintf("%.0f GiB", float64(n)/(1<<20))
}

// serviceVersions asks the services for their versions.
func serviceVersions(ctx context.Context) (string, error) {
	rabbit, err := amqp091.Dial(os.Getenv(testenv.AMQPVar))
	if err != nil {
		return "", fmt.Errorf("RabbitMQ: %w; run it with make bench-report", err)
	}
	defer func() { _ = rabbit.Close() }() // it was only read
	js, err := nats.Connect(os.Getenv(testenv.NATSVar))
	if err != nil {
		return "", fmt.Errorf("NATS: %w", err)
	}
	defer js.Close()
	at, err := url.Parse(os.Getenv(testenv.MySQLVar))
	if err != nil {
		return "", errors.New(testenv.MySQLVar + " is not a URL") // the error of url.Parse has the password
	}
	cfg := mysql.NewConfig()
	cfg.User, cfg.Net, cfg.Addr = at.User.Username(), "tcp", at.Host
	cfg.Passwd, _ = at.User.Password()
	connector, err := mysql.NewConnector(cfg)
	if err != nil {
		return "", err
	}
	d := sql.OpenDB(connector)
	defer func() { _ = d.Close() }() // it was only read
	var maria string
	if err := d.QueryRowContext(ctx, "SELECT VERSION()").Scan(&maria); err != nil {
		return "", fmt.Errorf("MariaDB: %w", err)
	}
	return fmt.Sprintf("RabbitMQ %v, NATS %s, MariaDB %s", rabbit.Properties["version"], js.ConnectedServerVersion(), maria), nil
}
