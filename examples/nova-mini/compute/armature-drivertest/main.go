// Command armature-drivertest checks that a program is a compute driver which keeps
// the rules of package computetest, whatever it is written in:
//
//	armature-drivertest --plugin ./armature-compute-acme --option dir=/var/lib/acme --image cirros
//
// It prints each rule as PASS, FAIL with what was wrong and why that matters, or SKIP
// with the reason, and exits with 1 if one is broken, 2 if the program is no driver.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/armature-go/armature/driver/drivertest"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/compute/computetest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout)
	stop()
	os.Exit(code)
}

// errBroken says that a rule is broken, which is printed already.
var errBroken = errors.New("the driver breaks rules")

func run(ctx context.Context, args []string, out io.Writer) int {
	var cfg computetest.Config
	var options map[string]string
	var verbose bool
	cmd := &cobra.Command{
		Use: "armature-drivertest --plugin PROGRAM", Short: "Check that a program is a compute driver that keeps the rules",
		Args: cobra.NoArgs, SilenceUsage: true, SilenceErrors: true,
	}
	f := cmd.Flags()
	f.StringVar(&cfg.Plugin.Program, "plugin", "", "the driver's program")
	f.StringToStringVar(&options, "option", nil, "an option of the driver, name=value; may be repeated")
	f.StringVar(&cfg.Image, "image", "image", "the image that servers boot from")
	f.IntVar(&cfg.Resources.VCPUs, "vcpus", 1, "virtual CPUs of the servers")
	f.IntVar(&cfg.Resources.MemoryMiB, "memory-mib", 64, "memory of the servers, in MiB")
	f.IntVar(&cfg.Resources.DiskGiB, "disk-gib", 1, "disk of the servers, in GiB")
	f.StringVar(&cfg.Volume.Path, "volume", "", "a file or block device that is attached to servers")
	f.StringVar(&cfg.Interface.Network, "network", "", "a network that servers are attached to")
	f.DurationVar(&cfg.Timeout, "timeout", time.Minute, "how long a call may take")
	f.IntVar(&cfg.Servers, "servers", 8, "how many servers there are at a time")
	f.IntVar(&cfg.Crashes, "crashes", 3, "how often the driver is killed in the middle of each call")
	f.BoolVarP(&verbose, "verbose", "v", false, "print the driver's log, too")
	_ = cmd.MarkFlagRequired("plugin")                      // it is there
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { //nolint:contextcheck // it has the command's
		var err error
		if cfg.Options, err = json.Marshal(options); err != nil {
			return err
		}
		if cfg.Plugin.Program, err = filepath.Abs(cfg.Plugin.Program); err != nil {
			return err
		}
		if cfg.Volume.Path != "" {
			cfg.Volume.ID = "5f0c8b3e-8d55-4f30-9f29-0a4c1f6a7b11"
		}
		if cfg.Interface.Network != "" {
			cfg.Interface.ID, cfg.Interface.MAC = "8a0f6b1d-2f4e-4c58-8f0e-6f2b7c9d4e21", "52:54:00:12:34:56"
		}
		return check(cmd.Context(), cfg, out, verbose)
	}
	cmd.SetArgs(args)
	cmd.SetOut(out)
	switch err := cmd.ExecuteContext(ctx); {
	case errors.Is(err, errBroken):
		return 1
	case err != nil:
		_, _ = fmt.Fprintln(out, "armature-drivertest:", err)
		return 2
	}
	return 0
}

func check(ctx context.Context, cfg computetest.Config, out io.Writer, verbose bool) error {
	log := &rule{ctx: ctx, out: out, show: verbose}
	e, closeDriver, err := drivertest.Launch(log, compute.Kind, cfg.Config)
	if err != nil {
		return err
	}
	defer closeDriver()
	counts := map[string]int{}
	for _, c := range computetest.Cases(cfg) { //nolint:contextcheck // a rule has that of its T
		if ctx.Err() != nil {
			return ctx.Err()
		}
		began := time.Now()
		verdict, why, r := judge(ctx, e, cfg.Config, c)
		counts[verdict]++
		_, _ = fmt.Fprintf(out, "%-20s %s%s (%.1f s)\n", c.Name, verdict, why, time.Since(began).Seconds())
		if r.failed || verbose {
			for _, line := range r.lines {
				_, _ = fmt.Fprintln(out, "    "+strings.ReplaceAll(line, "\n", "\n    "))
			}
		}
		if r.failed {
			_, _ = fmt.Fprintln(out, "    The rule: "+c.Rule)
		}
	}
	_, _ = fmt.Fprintf(out, "%d rules kept, %d broken, %d that do not apply\n", counts["PASS"], counts["FAIL"], counts["SKIP"])
	if counts["FAIL"] > 0 {
		return errBroken
	}
	return nil
}

// judge runs one rule in a goroutine of its own, which Fatalf ends. It returns PASS, FAIL or SKIP, and for SKIP ": " and the reason.
func judge(ctx context.Context, e *drivertest.Env[compute.Driver], cfg drivertest.Config, c drivertest.Case[compute.Driver]) (verdict, why string, r *rule) {
	r = &rule{ctx: ctx}
	var skipped string
	var wg sync.WaitGroup
	wg.Go(func() { skipped = drivertest.Check(r, e, cfg, c) }) //nolint:contextcheck // it has that of r
	wg.Wait()
	switch {
	case r.failed:
		return "FAIL", "", r
	case skipped != "":
		return "SKIP", ": " + skipped, r
	default:
		return "PASS", "", r
	}
}

// rule is a drivertest.T without package testing.
type rule struct {
	ctx  context.Context //nolint:containedctx // what a test has
	out  io.Writer       // where log goes at once; nil: it is kept
	show bool

	mu     sync.Mutex
	lines  []string
	failed bool
}

var _ drivertest.T = (*rule)(nil)

func (r *rule) Context() context.Context { return r.ctx }
func (r *rule) Helper()                  {}

func (r *rule) Logf(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	line := fmt.Sprintf(format, args...)
	if r.out == nil {
		r.lines = append(r.lines, line)
	} else if r.show {
		_, _ = fmt.Fprintln(r.out, line)
	}
}

func (r *rule) Errorf(format string, args ...any) {
	r.Logf(format, args...)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed = true
}

func (r *rule) Fatalf(format string, args ...any) {
	r.Errorf(format, args...)
	runtime.Goexit()
}
