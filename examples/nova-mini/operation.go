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

// operationCommand is for what is done to servers.
func (f *flags) operationCommand() *cobra.Command {
	with := func(do func(ctx context.Context, ops *operation.Store, args []string) error) func(*cobra.Command, []string) error {
		return func(cmd *cobra.Command, args []string) error {
			return f.withSchema(cmd.Context(), func(ctx context.Context, _ *options, d *sqlx.DB) error {
				return do(ctx, operation.NewStore(d), args)
			})
		}
	}
	each := func(done string, do func(ctx context.Context, ops *operation.Store, id string) error) func(*cobra.Command, []string) error {
		return with(func(ctx context.Context, ops *operation.Store, ids []string) error {
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
	var filter operation.Filter
	var state, why string
	list := &cobra.Command{
		Use: "list", Short: "One line for each operation, the newest first", Args: noArguments,
		PreRunE: func(*cobra.Command, []string) error {
			if state != "" && !slices.Contains(states, state) {
				return unknown("state", state, slices.Values(states))
			}
			if filter.Limit < 0 {
				return usageError{fault.New(fault.Invalid, "flag --limit: %d is less than 0", filter.Limit)}
			}
			return nil
		},
		RunE: with(func(ctx context.Context, ops *operation.Store, _ []string) (err error) {
			filter.State = operation.State(state)
			var found []operation.Operation
			if filter.Limit > 0 { // of 0 there is none
				if found, err = ops.List(ctx, filter); err != nil {
					return err
				}
			}
			w := tabwriter.NewWriter(f.out, 0, 0, 2, ' ', 0)
			_, _ = fmt.Fprintln(w, "ID\tKIND\tSERVER\tSTATE\tCREATED\tERROR") // Flush has the error
			for i := range found {
				o := &found[i]
				_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", o.ID, o.Kind, o.Resource, o.State, o.Created.Format(time.RFC3339), line(o.Error))
			}
			return w.Flush()
		}),
	}
	flags := list.Flags()
	flags.StringVar(&filter.Resource, "server", "", "those on this server")
	flags.StringVar(&filter.Kind, "kind", "", "those of this kind, such as server.create")
	flags.StringVar(&state, "state", "", "those in this state: "+strings.Join(states, ", "))
	flags.BoolVar(&filter.Open, "open", false, "those that are not over")
	flags.IntVar(&filter.Limit, "limit", 100, "how many at most")
	flags.StringVar(&filter.Marker, "marker", "", "ID of the last one of the page before")

	show := &cobra.Command{
		Use: "show ID...", Short: "All that is known of operations, as JSON, with each attempt at each step", Args: cobra.MinimumNArgs(1),
		RunE: with(func(ctx context.Context, ops *operation.Store, ids []string) error {
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
	cancel := &cobra.Command{
		Use: "cancel ID...", Short: "End operations that are not over, and undo what they have done", Args: cobra.MinimumNArgs(1),
		RunE: each("is canceled", func(ctx context.Context, ops *operation.Store, id string) error { return ops.Cancel(ctx, id, why) }),
	}
	cancel.Flags().StringVar(&why, "reason", "an operator canceled it", "what stands as the error")
	retry := &cobra.Command{
		Use: "retry ID...", Short: "Begin operations anew that have failed, timed out or were canceled", Args: cobra.MinimumNArgs(1),
		RunE: each("begins anew", func(ctx context.Context, ops *operation.Store, id string) error { return ops.Retry(ctx, id) }),
	}
	cmd := &cobra.Command{Use: "operation", Short: "What is done to servers, step by step"}
	cmd.AddCommand(list, show, cancel, retry)
	return cmd
}

// states are those of operations.
var states = []string{
	string(operation.Running), string(operation.Undoing), string(operation.Succeeded), string(operation.Failed), string(operation.TimedOut), string(operation.Canceled),
}

// line makes a text one line that does nothing to a terminal.
func line(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, strings.Join(strings.Fields(s), " "))
}
