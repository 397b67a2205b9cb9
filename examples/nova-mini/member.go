package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/spf13/cobra"

	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/membership"
)

// memberCommand manages the services that are registered in the database.
func (f *flags) memberCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "member", Short: "Manage registered services"}
	cmd.AddCommand(f.memberListCommand(), f.memberRemoveCommand())
	return cmd
}

// withMembers returns the function of a command that needs the registry.
func (f *flags) withMembers(do func(ctx context.Context, members *membership.Registry, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		return f.withSchema(cmd.Context(), func(ctx context.Context, o *options, d *sqlx.DB) error {
			return do(ctx, store.New(d).Members(o.ServiceDownTime), args)
		})
	}
}

func (f *flags) memberListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the services: whether each is up, what it serves, and which process owns its host", Args: noArguments,
		RunE: f.withMembers(func(ctx context.Context, members *membership.Registry, _ []string) error {
			found, err := members.List(ctx, "")
			if err != nil {
				return err
			}
			w := tabwriter.NewWriter(f.out, 0, 0, 2, ' ', 0)
			_, _ = fmt.Fprintln(w, "KIND\tHOST\tSTATE\tSEEN\tSERVES\tWHY\tPROCESS") // Flush returns the error
			for i := range found {
				m := &found[i]
				state := "down"
				if m.Up {
					state = "up"
				}
				_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", m.Kind, m.Host, state, m.SeenAt.Format(time.RFC3339), servesText(m), singleLine(m.Unfit()), singleLine(m.Instance.Process))
			}
			return w.Flush()
		}),
	}
}

// servesText names the versions of the interfaces that a member serves, or a dash if the member reports none.
func servesText(m *membership.Member) string {
	var list []string
	for _, name := range slices.Sorted(maps.Keys(m.Interfaces)) {
		list = append(list, singleLine(name+" "+strings.Join(m.Interfaces[name], " ")))
	}
	return cmp.Or(strings.Join(list, ", "), "-")
}

func (f *flags) memberRemoveCommand() *cobra.Command {
	kinds := []string{store.ConductorBinary, store.SchedulerBinary, store.ComputeBinary}
	var force bool
	remove := &cobra.Command{
		Use: "remove KIND HOST", Short: "Remove a service whose process no longer exists, so that another process can claim its host at once", Args: cobra.ExactArgs(2),
		PreRunE: func(_ *cobra.Command, args []string) error {
			if !slices.Contains(kinds, args[0]) {
				return unknownName("kind", args[0], slices.Values(kinds))
			}
			return nil
		},
		RunE: f.withMembers(func(ctx context.Context, members *membership.Registry, args []string) error {
			if force {
				if err := members.ForceDown(ctx, args[0], args[1], true); err != nil {
					return err
				}
			}
			if err := members.Remove(ctx, args[0], args[1]); errors.Is(err, fault.Precondition) {
				return fmt.Errorf("%w: wait until it is down, or use --force if its process no longer exists", err)
			} else if err != nil {
				return err
			}
			_, err := fmt.Fprintf(f.out, "%s on host %s is removed\n", args[0], args[1])
			return err
		}),
	}
	remove.Flags().BoolVar(&force, "force", false, "also remove a service that is up: first make sure that its process no longer exists")
	return remove
}
