package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/jmoiron/sqlx"
	"github.com/spf13/cobra"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/operation"
)

// operationCommand manages the operations on servers.
func (f *flags) operationCommand() *cobra.Command {
	var why string
	cancel := &cobra.Command{
		Use: "cancel ID...", Short: "Cancel operations, and undo the steps that they have done", Args: cobra.MinimumNArgs(1),
		RunE: f.eachOperation("is canceled", func(ctx context.Context, ops *operation.Store, id string) error { return ops.Cancel(ctx, id, why) }),
	}
	cancel.Flags().StringVar(&why, "reason", "an operator canceled it", "text of the operations' error")
	retry := &cobra.Command{
		Use: "retry ID...", Short: "Restart operations that failed, timed out or were canceled", Args: cobra.MinimumNArgs(1),
		RunE: f.eachOperation("restarts", func(ctx context.Context, ops *operation.Store, id string) error { return ops.Retry(ctx, id) }),
	}
	cmd := &cobra.Command{Use: "operation", Short: "Manage the operations on servers"}
	cmd.AddCommand(f.listOperations(), f.showOperations(), cancel, retry)
	return cmd
}

// withOperations returns the function of a command that reads or changes operations.
func (f *flags) withOperations(do func(ctx context.Context, ops *operation.Store, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		return f.withSchema(cmd.Context(), func(ctx context.Context, _ *options, d *sqlx.DB) error {
			return do(ctx, operation.NewStore(d), args)
		})
	}
}

// eachOperation returns the function of a command that calls do for each of its arguments, which are ids of operations. After each
// call it prints the id and done.
func (f *flags) eachOperation(done string, do func(ctx context.Context, ops *operation.Store, id string) error) func(*cobra.Command, []string) error {
	return f.withOperations(func(ctx context.Context, ops *operation.Store, ids []string) error {
		for _, id := range ids {
			if err := do(ctx, ops, id); err != nil {
				return err
			}
			if _, err := fmt.Fprintf(f.out, "%s %s\n", id, done); err != nil {
				return err
			}
		}
		return nil
	})
}

func (f *flags) listOperations() *cobra.Command {
	var filter operation.Filter
	var state string
	cmd := &cobra.Command{
		Use: "list", Short: "List operations, the newest first", Args: noArguments,
		PreRunE: func(*cobra.Command, []string) error {
			if state != "" && !slices.Contains(states, state) {
				return unknownName("state", state, slices.Values(states))
			}
			if filter.Limit < 0 {
				return usageError{fault.New(fault.Invalid, "flag --limit: %d is less than 0", filter.Limit)}
			}
			return nil
		},
		RunE: f.withOperations(func(ctx context.Context, ops *operation.Store, _ []string) (err error) {
			filter.State = operation.State(state)
			var found []operation.Operation
			if filter.Limit > 0 { // with limit 0 the list is empty
				if found, err = ops.List(ctx, filter); err != nil {
					return err
				}
			}
			w := tabwriter.NewWriter(f.out, 0, 0, 2, ' ', 0)
			_, _ = fmt.Fprintln(w, "ID\tKIND\tSERVER\tSTATE\tRUNNER\tCREATED\tERROR") // Flush returns the error
			for i := range found {
				o := &found[i]
				_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", o.ID, o.Kind, o.Resource, o.State, runnerOf(o), o.Created.Format(time.RFC3339), singleLine(o.Error))
			}
			return w.Flush()
		}),
	}
	flags := cmd.Flags()
	flags.StringVar(&filter.Resource, "server", "", "only operations on this server")
	flags.StringVar(&filter.Kind, "kind", "", "only operations of this kind, such as server.create")
	flags.StringVar(&state, "state", "", "only operations in this state: "+strings.Join(states, ", "))
	flags.BoolVar(&filter.Open, "open", false, "only operations that have not ended")
	flags.BoolVar(&filter.Unknown, "unknown", false, "only unknown operations: no running conductor knows them, and they wait for a conductor of the release that began them")
	flags.IntVar(&filter.Limit, "limit", 100, "highest number of operations")
	flags.StringVar(&filter.Marker, "marker", "", "ID of the last operation of the previous page")
	return cmd
}

func (f *flags) showOperations() *cobra.Command {
	return &cobra.Command{
		Use: "show ID...", Short: "Show operations as JSON, with each attempt at each step", Args: cobra.MinimumNArgs(1),
		RunE: f.withOperations(func(ctx context.Context, ops *operation.Store, ids []string) error {
			out := json.NewEncoder(f.out)
			out.SetIndent("", "  ")
			for _, id := range ids {
				o, err := ops.Show(ctx, id)
				if err != nil {
					return err
				}
				if err := out.Encode(o); err != nil {
					return err
				}
			}
			return nil
		}),
	}
}

// runnerOf returns the conductor that runs an operation, "unknown operation", or "-".
func runnerOf(o *operation.Operation) string {
	switch {
	case o.UnknownSince != nil:
		return "unknown operation"
	case o.Owner != "" && !o.State.Ended():
		return o.Owner
	}
	return "-"
}

// states are the states of operations.
var states = []string{
	string(operation.Running), string(operation.Undoing), string(operation.Succeeded), string(operation.Failed), string(operation.TimedOut), string(operation.Canceled),
}

// singleLine turns a text into one line without control characters, which could affect a terminal.
func singleLine(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, strings.Join(strings.Fields(s), " "))
}
