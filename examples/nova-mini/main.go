// Command nova-mini is a compute service that speaks a part of the Nova v2.1
// REST API. It is the reference deployment of Armature's packages.
//
//	nova-mini                                        everything in one process, nothing installed
//	nova-mini db sync --config-file nova.conf        make or upgrade the database
//	nova-mini upgrade check --config-file nova.conf   whether the services can start: exit code 0, 1 or 2
//	nova-mini api|conductor|scheduler|compute --config-file nova.conf
//	nova-mini placement audit [--repair] --config-file nova.conf   claims that are not as the servers are
//	nova-mini operation list|show|cancel|retry --config-file nova.conf   what is done to servers, step by step
//	nova-mini member list|remove --config-file nova.conf   services that are known, and one that is gone for good
//	nova-mini config sample|validate                  options: a file of all, and whether one is right
//	nova-mini policy sample|explain|list              rules: a file of all, who is denied by which part, those in force
//	nova-mini openapi [--version 2.1]                 the OpenAPI 3.1 document of the REST API
//	nova-mini dlq list|show|requeue|drop --config-file nova.conf   messages that no service could do
//
// The services share a RabbitMQ or a NATS (transport_url) and a MySQL or MariaDB
// ([database] connection). Any number of each may run; one compute on each host.
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
	cmd := command(os.Stdout)
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

// command returns the command line.
func command(out io.Writer) *cobra.Command {
	f := &flags{out: out, config: config.Source{Env: os.Environ()}}
	root := &cobra.Command{
		Use:   "nova-mini",
		Short: "A compute service that speaks a part of the Nova v2.1 API; without a command, all of it in one process",
		Long: "A compute service that speaks a part of the Nova v2.1 API. Without a command all of it runs in one process.\n\n" +
			"Commands that get no --config-file and no --config-dir read nova-mini.conf and nova-mini.conf.d, of ~/.nova-mini or /etc/nova-mini.",
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
		if len(f.config.Files) > 0 || cmd == root { // all in one process needs no files, and takes none that it was not given
			return nil
		}
		home, _ := os.UserHomeDir() // else there are none of the user
		f.config.Files = config.Find(home, "nova-mini", "")
		return nil
	}
	p := root.PersistentFlags()
	f.config.AddFlags(p)
	p.StringVar(&f.statePath, "state-path", "", "directory for the data of the fake driver and of the embedded database (default: a temporary one)")
	p.StringVar(&f.port, "port", "", "port of the API, 0 for any free one (option osapi_compute_listen_port)")

	for _, s := range []struct {
		name, short string
		wire        func(context.Context, *node) error
	}{
		{"api", "The REST API", wireAPI},
		{"conductor", "Brings every task of a server to its end", wireConductor},
		{"scheduler", "Chooses hosts", wireScheduler},
		{"compute", "Builds servers on this host", wireCompute},
	} {
		root.AddCommand(&cobra.Command{
			Use: s.name, Short: s.short, Args: noArguments,
			RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd.Context(), s.name, s.wire) },
		})
	}
	root.AddCommand(f.databaseCommands()...)
	root.AddCommand(f.dlqCommand(), f.operationCommand(), f.memberCommand(), f.configCommand(), f.policyCommand(), f.openapiCommand())
	judgeArguments(root)
	return root
}

// usageError is an error of the command line: the exit code is 2.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// unknown is an error about a name that does not exist, with the nearest that does, or all if they are few.
// Only the last word of the name is compared.
func unknown(what, name string, known func(yield func(string) bool)) error {
	const few = 8
	hint := text.Nearest(name[strings.LastIndex(name, " ")+1:], known)
	if all := slices.Collect(known); hint == "" && len(all) <= few {
		hint = "; there are: " + strings.Join(all, ", ")
	}
	return usageError{fault.New(fault.Invalid, "there is no %s %q%s", what, name, hint)}
}

// noArguments is the check of a command without arguments.
func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fault.New(fault.Invalid, "%s has no arguments: remove %q", cmd.CommandPath(), strings.Join(args, " "))
	}
	return nil
}

// judgeArguments makes the errors of all command lines usageErrors, and a command that does not exist one.
func judgeArguments(cmd *cobra.Command) {
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
			return unknown("command", strings.TrimSpace(strings.TrimPrefix(cmd.CommandPath(), "nova-mini")+" "+args[0]), slices.Values(names))
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
		judgeArguments(c)
	}
}
