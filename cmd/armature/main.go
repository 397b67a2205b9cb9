// Command armature writes the beginning of a component or of a driver, and checks drivers:
//
//	armature new component NAME [--module PATH] [--replace DIR]
//	armature new driver NAME --lang go|python [--module PATH] [--replace DIR]
//	armature drivertest PROGRAM [--option NAME=VALUE]
//
// The component has a REST API, a conductor, workers with drivers, tables, options, a policy and tests. The driver is one for nova-mini's compute
// service, with its test. Both compile, pass their tests and run.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := runCommand(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// usageError is an error of the command line, or of a program that is not a driver: the exit code is 2.
type usageError struct{ error }

// runCommand runs the command and returns the exit code.
func runCommand(ctx context.Context, args []string, out, errs io.Writer) int {
	root := &cobra.Command{
		Use: "armature", Short: "Write the beginning of a component or of a driver, and check drivers", SilenceUsage: true, SilenceErrors: true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("unknown command %q: see armature --help", args[0])}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.SetOut(out)
	root.SetErr(errs)
	root.AddCommand(newCommand(), drivertestCommand(), &cobra.Command{ //nolint:contextcheck // cobra passes the context on
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), moduleVersion())
			return err
		},
	})
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errBroken):
		return 1
	}
	_, _ = fmt.Fprintf(errs, "armature: %v\n", err) // standard error may be closed
	if _, ok := errors.AsType[usageError](err); ok {
		return 2
	}
	return 1
}

// moduleVersion returns the version of the module that this program was built from, or "(devel)" if it was built from a clone.
func moduleVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "(devel)"
	}
	return info.Main.Version
}

func newCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "new", Short: "Write a new component or driver", RunE: func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return usageError{fmt.Errorf("cannot write a new %q: see armature new --help", args[0])}
		}
		return cmd.Help()
	}}
	cmd.AddCommand(newComponentCommand(), newDriverCommand())
	return cmd
}

func newComponentCommand() *cobra.Command {
	var c newComponent
	cmd := &cobra.Command{
		Use: "component NAME", Short: "Write a component into the directory NAME",
		Long: "Write a component into the directory NAME: a REST API with the resource NAME, a conductor, workers with drivers, tables, options, " +
			"a policy and tests. NAME is in the singular, such as backup: it has only a to z and 0 to 9.",
		Args: oneName("component backup"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c.name, c.version, c.out = args[0], moduleVersion(), cmd.OutOrStdout()
			return c.write(cmd.Context())
		},
	}
	c.addFlags(cmd)
	return cmd
}

func newDriverCommand() *cobra.Command {
	var d newDriver
	cmd := &cobra.Command{
		Use: "driver NAME --lang go|python", Short: "Write a driver of nova-mini's compute service into the directory NAME",
		Long: "Write a driver of nova-mini's compute service into the directory NAME, with its tests. The driver is the program armature-compute-NAME, " +
			"which keeps the rules of armature drivertest. NAME has only a to z and 0 to 9.",
		Args: oneName("driver acme --lang go"),
		RunE: func(cmd *cobra.Command, args []string) error {
			d.name, d.version, d.out = args[0], moduleVersion(), cmd.OutOrStdout()
			return d.write(cmd.Context())
		},
	}
	d.addFlags(cmd)
	cmd.Flags().StringVar(&d.lang, "lang", "", "language of the driver: go or python")
	return cmd
}

// oneName returns a check of the arguments: one name.
func oneName(example string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) != 1 {
			return usageError{errors.New("want one NAME, such as: armature new " + example)}
		}
		return nil
	}
}

// addFlags adds the flags of a project to its command.
func (p *project) addFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&p.module, "module", "", "path of the Go module (default: example.org/NAME)")
	f.StringVar(&p.replace, "replace", "", "clone of Armature's repository to use instead of the published module")
	f.StringVar(&p.dir, "dir", "", "directory to write to; it must be empty or not exist (default: NAME)")
}
