package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/armature-go/armature/driver/drivertest"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/compute/computetest"
)

// errBroken means that a driver breaks rules. The failures are printed already.
var errBroken = errors.New("the driver breaks rules")

func drivertestCommand() *cobra.Command {
	var cfg computetest.Config
	var options map[string]string
	var verbose bool
	cmd := &cobra.Command{
		Use: "drivertest PROGRAM", Short: "Check that a program is a compute driver that keeps the rules",
		Long: "Check that a program is a driver of nova-mini's compute service that keeps the rules. The program may be written in any language. " +
			"Each rule is printed as PASS; as FAIL, with the failures and the text of the rule; or as SKIP, with the reason. " +
			"The exit code is 1 if a rule is broken, and 2 if the program is not a driver or an argument is wrong.",
		Example: "  armature drivertest bin/armature-compute-acme --option host=h1,dir=/tmp/servers",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{errors.New("want one PROGRAM, such as: armature drivertest bin/armature-compute-acme")}
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringToStringVar(&options, "option", nil, "option of the driver, as name=value; may be repeated")
	f.StringVar(&cfg.Image, "image", "image", "image that the servers boot from")
	f.IntVar(&cfg.Resources.VCPUs, "vcpus", 1, "virtual CPUs of the servers")
	f.IntVar(&cfg.Resources.MemoryMiB, "memory-mib", 64, "memory of the servers, in MiB")
	f.IntVar(&cfg.Resources.DiskGiB, "disk-gib", 1, "disk of the servers, in GiB")
	f.StringVar(&cfg.Volume.Path, "volume", "", "file or block device that is attached to the servers")
	f.StringVar(&cfg.Interface.Network, "network", "", "network that the servers are attached to")
	f.DurationVar(&cfg.Timeout, "timeout", time.Minute, "time limit of a call")
	f.IntVar(&cfg.Servers, "servers", 8, "number of servers that exist at the same time")
	f.IntVar(&cfg.Crashes, "crashes", 3, "number of times that the driver is killed during each call")
	f.BoolVarP(&verbose, "verbose", "v", false, "also print the log of the driver")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var err error
		if cfg.Options, err = json.Marshal(options); err != nil {
			return err
		}
		if cfg.Plugin.Program, err = filepath.Abs(args[0]); err != nil {
			return err
		}
		if cfg.Volume.Path != "" {
			cfg.Volume.ID = "5f0c8b3e-8d55-4f30-9f29-0a4c1f6a7b11"
		}
		if cfg.Interface.Network != "" {
			cfg.Interface.ID, cfg.Interface.MAC = "8a0f6b1d-2f4e-4c58-8f0e-6f2b7c9d4e21", "52:54:00:12:34:56"
		}
		if err = checkDriver(cmd.Context(), cfg, cmd.OutOrStdout(), verbose); err != nil && !errors.Is(err, errBroken) {
			return usageError{err}
		}
		return err
	}
	return cmd
}

// checkDriver checks each rule, and prints the results. It returns errBroken if a rule is broken.
func checkDriver(ctx context.Context, cfg computetest.Config, out io.Writer, verbose bool) error {
	log := &rule{ctx: ctx, out: out, show: verbose}
	e, closeDriver, err := drivertest.Launch(log, compute.Kind, cfg.Config)
	if err != nil {
		return err
	}
	defer closeDriver()
	counts := map[string]int{}
	for _, c := range computetest.Cases(cfg) { //nolint:contextcheck // a rule uses the context of its T
		if ctx.Err() != nil {
			return ctx.Err()
		}
		began := time.Now()
		verdict, suffix, r := checkRule(ctx, e, cfg.Config, c)
		counts[verdict]++
		_, _ = fmt.Fprintf(out, "%-20s %s%s (%.1f s)\n", c.Name, verdict, suffix, time.Since(began).Seconds())
		if r.failed || verbose {
			for _, line := range r.lines {
				_, _ = fmt.Fprintln(out, "    "+strings.ReplaceAll(line, "\n", "\n    "))
			}
		}
		if r.failed {
			_, _ = fmt.Fprintln(out, "    The rule: "+c.Rule)
		}
	}
	_, _ = fmt.Fprintf(out, "%d rules kept, %d broken, %d skipped\n", counts["PASS"], counts["FAIL"], counts["SKIP"])
	if counts["FAIL"] > 0 {
		return errBroken
	}
	return nil
}

// checkRule runs one rule in a goroutine of its own, which Fatalf ends. The verdict is PASS, FAIL or SKIP. For SKIP the suffix
// is ": " and the reason.
func checkRule(ctx context.Context, e *drivertest.Env[compute.Driver], cfg drivertest.Config, c drivertest.Case[compute.Driver]) (verdict, suffix string, r *rule) {
	r = &rule{ctx: ctx}
	var skipped string
	var wg sync.WaitGroup
	wg.Go(func() { skipped = drivertest.Check(r, e, cfg, c) }) //nolint:contextcheck // it uses the context of r
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

// rule is a drivertest.T outside of package testing.
type rule struct {
	ctx  context.Context //nolint:containedctx // as testing.T has one
	out  io.Writer       // gets log lines at once; nil: they are kept in lines
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
