package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
)

// dlqCommand manages dead letters: messages that no service could handle.
func (f *flags) dlqCommand() *cobra.Command {
	var all bool
	dlq := &cobra.Command{Use: "dlq", Short: "Manage dead letters: messages that no service could handle"}
	list := &cobra.Command{
		Use: "list", Short: "List dead letters", Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.dlqList(cmd.Context()) },
	}
	show := &cobra.Command{
		Use: "show ID...", Short: "Show dead letters with all details", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, ids []string) error {
			return f.dlqEach(cmd.Context(), ids, false, func(l *rpc.DeadLetter) rpc.Verdict {
				printLetter(f.out, l)
				return rpc.Keep
			})
		},
	}
	requeue := &cobra.Command{
		Use: "requeue {ID... | --all}", Short: "Publish dead letters to their original topic again", Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, ids []string) error {
			return f.dlqEnd(cmd.Context(), ids, all, rpc.Requeue, "requeued")
		},
	}
	drop := &cobra.Command{
		Use: "drop {ID... | --all}", Short: "Delete dead letters", Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, ids []string) error {
			return f.dlqEnd(cmd.Context(), ids, all, rpc.Drop, "dropped")
		},
	}
	for _, c := range []*cobra.Command{requeue, drop} {
		c.Flags().BoolVar(&all, "all", false, "all dead letters, instead of IDs")
	}
	dlq.AddCommand(list, show, requeue, drop)
	return dlq
}

// interfaces are the interfaces that can have dead letters.
var interfaces = []*rpc.Interface{compute.Worker, compute.Conductor, compute.Scheduler}

// letters reads the dead-letter queues, and calls decide once for each dead letter, with the name of its interface.
func (f *flags) letters(ctx context.Context, decide func(iface string, l *rpc.DeadLetter) rpc.Verdict) (err error) {
	o, err := f.load()
	if err != nil {
		return err
	}
	// watermill-amqp delivers only few messages at once. amqpbus has no such limit, and can read the same queues.
	o.TransportURL = strings.TrimPrefix(o.TransportURL, "watermill-")
	bus, err := o.openBus(slog.New(slog.DiscardHandler)) // errors are returned, not logged
	if err != nil {
		return o.optionError("DEFAULT", "transport_url", err)
	}
	if err := bus.Start(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bus.Stop(context.WithoutCancel(ctx))) }()
	for _, i := range interfaces {
		if err := rpc.DeadLetters(ctx, bus, i, func(l *rpc.DeadLetter) rpc.Verdict { return decide(i.Name, l) }); err != nil {
			return err
		}
	}
	return nil
}

func (f *flags) dlqList(ctx context.Context) error {
	w := tabwriter.NewWriter(f.out, 0, 0, 2, ' ', 0)
	head := "ID\tINTERFACE\tMETHOD\tFAILURES\tDEAD-LETTERED AT\tHOST\tREASON"
	n := 0
	err := f.letters(ctx, func(iface string, l *rpc.DeadLetter) rpc.Verdict {
		if n++; n == 1 {
			_, _ = fmt.Fprintln(w, head) // Flush returns the error
		}
		reason, _, _ := strings.Cut(l.Reason, "\n")
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\t%s\n", l.ID, iface, l.Info.Method, l.Failures, // as above
			l.DiedAt.Format(time.DateTime), l.Server, reason)
		return rpc.Keep
	})
	if err == nil && n == 0 {
		_, err = fmt.Fprintln(f.out, "no dead letters")
	}
	return errors.Join(err, w.Flush())
}

// dlqEach calls do for each dead letter with one of the ids, or for all. Errors: a usageError if an id is empty; NotFound if an id
// does not exist, after do was called for the others.
func (f *flags) dlqEach(ctx context.Context, ids []string, all bool, do func(*rpc.DeadLetter) rpc.Verdict) error {
	if slices.Contains(ids, "") { // an empty id would match all dead letters without an id
		return usageError{fault.New(fault.Invalid, "the id of a dead letter is empty")}
	}
	missing := map[string]bool{}
	for _, id := range ids {
		missing[id] = true
	}
	err := f.letters(ctx, func(_ string, l *rpc.DeadLetter) rpc.Verdict {
		if !all && !slices.Contains(ids, l.ID) {
			return rpc.Keep
		}
		delete(missing, l.ID)
		return do(l)
	})
	if err == nil && len(missing) > 0 {
		err = fault.New(fault.NotFound, "dead letter %s does not exist", strings.Join(slices.Sorted(maps.Keys(missing)), ", "))
	}
	return err
}

// dlqEnd requeues or drops the dead letters with the ids, or all, and prints how many. done is the word that is printed, such as
// dropped.
func (f *flags) dlqEnd(ctx context.Context, ids []string, all bool, v rpc.Verdict, done string) error {
	if (len(ids) == 0) != all {
		return usageError{fault.New(fault.Invalid, "give the ids of the dead letters, or --all, but not both")}
	}
	n := 0
	err := f.dlqEach(ctx, ids, all, func(*rpc.DeadLetter) rpc.Verdict {
		n++
		return v
	})
	_, perr := fmt.Fprintf(f.out, "%d dead letters %s\n", n, done)
	return errors.Join(err, perr)
}

func printLetter(w io.Writer, l *rpc.DeadLetter) {
	_, _ = fmt.Fprintf(w, "id                %s\nreason            %s\nfailures          %d\ndead-lettered at  %s\nhost              %s\ntopic             %s\nmetadata\n", // an error of standard output is ignored
		l.ID, l.Reason, l.Failures, l.DiedAt.Format(time.RFC3339), l.Server, l.Topic)
	for _, k := range slices.Sorted(maps.Keys(l.Metadata)) {
		_, _ = fmt.Fprintf(w, "  %s: %s\n", k, l.Metadata[k]) // as above
	}
	_, _ = fmt.Fprintf(w, "payload           %s\n", l.Payload) // as above
}
