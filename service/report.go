package service

import (
	"context"
	"fmt"
	"io"
	"runtime/debug"
	"runtime/pprof"
	"time"
)

// section is a part of a report.
type section struct {
	name  string
	write func(io.Writer) error
}

// AddReport adds a section to the report that SIGUSR2 and the admin listener write. Call it
// before Run, from one goroutine. The function write is called for each report and must be safe for
// concurrent use. An error of write is written into the report, which then continues.
func (a *App) AddReport(name string, write func(io.Writer) error) {
	a.sections = append(a.sections, section{name, write})
}

// Report writes a report for an operator who looks for a fault: the build, the phase, the
// checks, the running work with its age, the loops, the added sections, and every
// goroutine's stack. oslo.reports calls such a report a Guru Meditation Report. Report blocks as [App.Checks] does,
// and returns the first error of w. It is safe for concurrent use.
func (a *App) Report(ctx context.Context, w io.Writer) error {
	r := &reporter{w: w}
	r.printf("==== %s: report of %s ====\n", a.cfg.Name, time.Now().UTC().Format(time.RFC3339))
	if b, ok := debug.ReadBuildInfo(); ok {
		r.printf("build: %s %s %s\n", b.Main.Path, b.Main.Version, b.GoVersion)
	}
	began := a.began.Load()
	if began != nil {
		r.printf("up: %v\n", time.Since(*began).Round(time.Second))
	}
	r.printf("phase: %s\n", phaseNames[a.phase.Load()])
	r.printf("\n==== checks ====\n")
	for _, c := range a.Checks(ctx) {
		state := "ok"
		if c.Err != nil {
			state = c.Err.Error()
		}
		r.printf("%s: %s (%v)\n", c.Name, state, c.Took.Round(time.Microsecond))
	}
	r.printf("\n==== in flight ====\n")
	for _, k := range a.inflight.List() {
		r.printf("%v %s %s %s %s\n", time.Since(k.Since).Round(time.Millisecond), k.Kind, k.Name, k.Resource, k.RequestID)
	}
	r.printf("\n==== loops ====\n")
	for _, l := range a.Loops() {
		r.printf("%s: every %v, %d calls, %d failed, the last at %s took %v: %s\n", l.Name, l.Every, l.Calls, l.Failed, l.Last.UTC().Format(time.RFC3339), l.Took, l.Err)
	}
	for _, s := range a.sections {
		r.printf("\n==== %s ====\n", s.name)
		if err := s.write(w); err != nil {
			r.printf("%v\n", err)
		}
	}
	r.printf("\n==== goroutines ====\n")
	if r.err != nil {
		return r.err
	}
	return pprof.Lookup("goroutine").WriteTo(w, 2)
}

// reporter writes to w and keeps the first error. After an error it writes nothing more.
type reporter struct {
	w   io.Writer
	err error
}

// printf writes a formatted text.
func (r *reporter) printf(format string, args ...any) {
	if r.err == nil {
		_, r.err = fmt.Fprintf(r.w, format, args...)
	}
}
