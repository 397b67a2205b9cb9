// Command nova-mini is a cloud's compute component. It implements a part of the Nova v2.1 REST API, and is the reference
// component of Armature's packages.
//
//	nova-mini                                         run all services in one process; needs no other software
//	nova-mini db sync --config-file nova.conf         create or upgrade the tables of the database
//	nova-mini upgrade check --config-file nova.conf   check whether the services can start: exit code 0, 1 or 2
//	nova-mini api|conductor|scheduler|compute --config-file nova.conf   run one service
//	nova-mini placement audit [--repair] --config-file nova.conf   find claims that differ from the servers
//	nova-mini operation list|show|cancel|retry --config-file nova.conf   manage the operations on servers
//	nova-mini member list|remove --config-file nova.conf   list the services; remove one whose process no longer exists
//	nova-mini config sample|validate                  print all options; check a configuration
//	nova-mini policy sample|validate|list|explain     print all rules; check rules; show why a rule denies
//	nova-mini openapi [--version 2.1]                 print the OpenAPI 3.1 document of the REST API
//	nova-mini openapi --history                       print what each microversion changes
//	nova-mini dlq list|show|requeue|drop --config-file nova.conf   manage messages that no service could handle
//
// The services share a RabbitMQ or a NATS server (transport_url) and a MySQL or MariaDB server ([database] connection).
// Any number of processes of each service may run, but only one compute service for each host.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/text"
	"github.com/armature-go/armature/service/config"
)

func main() {
	cmd := newCommand(os.Stdout)
	err := cmd.ExecuteContext(context.Background())
	if code, ok := errors.AsType[exitError](err); ok {
		os.Exit(int(code))
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", cmd.Name(), err)
		if _, ok := errors.AsType[usageError](err); ok {
			os.Exit(2)
		}
		os.Exit(1)
	}
}

// newCommand returns the command line.
func newCommand(out io.Writer) *cobra.Command {
	f := &flags{out: out, config: config.Source{Env: os.Environ()}}
	root := &cobra.Command{
		Use:   "nova-mini",
		Short: "Services that implement a part of the Nova v2.1 API; without a command, all services in one process",
		Long: "Services that implement a part of the Nova v2.1 API. Without a command, all services run in one process.\n\n" +
			"A command without --config-file and --config-dir reads nova-mini.conf and nova-mini.conf.d in ~/.nova-mini or /etc/nova-mini.",
		Args:          noArguments,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.openByDefault(); err != nil {
				return err
			}
			return f.run(cmd.Context(), allInOneService, allInOne)
		},
	}
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		if len(f.config.Files) > 0 || cmd == root { // the process with all services needs no files, and reads only files that a flag names
			return nil
		}
		home, _ := os.UserHomeDir() // without a home directory, only the files of the system are read
		f.config.Files = config.Find(home, "nova-mini", "")
		return nil
	}
	p := root.PersistentFlags()
	f.config.AddFlags(p)
	p.StringVar(&f.statePath, "state-path", "", "directory for the data of the fake driver and of the embedded database (default: a temporary directory)")
	p.StringVar(&f.port, "port", "", "port of the API; 0: any free port (option osapi_compute_listen_port)")

	for _, s := range []struct {
		name, short string
		wire        func(context.Context, *node) error
	}{
		{"api", "Run the API service", wireAPI},
		{"conductor", "Run the conductor service, which runs the operations on servers", wireConductor},
		{"scheduler", "Run the scheduler service, which chooses hosts", wireScheduler},
		{"compute", "Run the compute service, which builds servers on this host", wireCompute},
	} {
		root.AddCommand(&cobra.Command{
			Use: s.name, Short: s.short, Args: noArguments,
			RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd.Context(), s.name, s.wire) },
		})
	}
	root.AddCommand(f.databaseCommands()...)
	root.AddCommand(f.dlqCommand(), f.operationCommand(), f.memberCommand(), f.configCommand(), f.policyCommand(), f.openapiCommand())
	checkArguments(root)
	return root
}

// usageError is an error of the command line: the exit code is 2.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// unknownName returns an error about a name that does not exist. The error names the nearest existing name, or all names if
// none is near. Only the last word of the name is compared.
func unknownName(what, name string, known func(yield func(string) bool)) error {
	const few = 8
	hint := text.Nearest(name[strings.LastIndex(name, " ")+1:], known)
	if all := slices.Collect(known); hint == "" && len(all) <= few {
		hint = "; use one of: " + strings.Join(all, ", ")
	}
	return usageError{fault.New(fault.Invalid, "%s %q does not exist%s", what, name, hint)}
}

// noArguments refuses arguments of a command that has none.
func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fault.New(fault.Invalid, "%s has no arguments: remove %q", cmd.CommandPath(), strings.Join(args, " "))
	}
	return nil
}

// checkArguments makes a command and its subcommands return a usageError for wrong arguments, wrong flags and unknown commands.
func checkArguments(cmd *cobra.Command) {
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	args := cmd.Args
	if cmd.HasSubCommands() {
		args = func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			var names []string
			for _, c := range cmd.Commands() {
				names = append(names, c.Name())
			}
			return unknownName("command", strings.TrimSpace(strings.TrimPrefix(cmd.CommandPath(), "nova-mini")+" "+args[0]), slices.Values(names))
		}
		if cmd.RunE == nil {
			cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
		}
	}
	cmd.Args = func(cmd *cobra.Command, given []string) error {
		if args == nil {
			return nil
		}
		if err := args(cmd, given); err != nil {
			return usageError{err}
		}
		return nil
	}
	for _, c := range cmd.Commands() {
		checkArguments(c)
	}
}
