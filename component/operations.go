package component

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/spf13/cobra"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/service/operation"
)

// operationCommand returns the command operation, which manages the operations.
func (t *Tool[O]) operationCommand() *cobra.Command {
	var why string
	cancel := &cobra.Command{
		Use: "cancel ID...", Short: "Cancel operations, and undo their completed steps", Args: cobra.MinimumNArgs(1),
		RunE: t.eachOperation("is canceled", func(ctx context.Context, ops *operation.Store, id string) error { return ops.Cancel(ctx, id, why) }),
	}
	cancel.Flags().StringVar(&why, "reason", "an operator canceled it", "text of the operations' error")
	retry := &cobra.Command{
		Use: "retry ID...", Short: "Restart operations that failed, timed out or were canceled", Args: cobra.MinimumNArgs(1),
		RunE: t.eachOperation("restarts", func(ctx context.Context, ops *operation.Store, id string) error { return ops.Retry(ctx, id) }),
	}
	cmd := &cobra.Command{Use: "operation", Short: "Manage the operations"}
	cmd.AddCommand(t.listOperations(), t.showOperations(), cancel, retry)
	return cmd
}

// withOperations returns the function of a command that reads or changes operations.
func (t *Tool[O]) withOperations(do func(ctx context.Context, ops *operation.Store, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		return t.WithDatabase(cmd.Context(), func(ctx context.Context, _ *O, d *sqlx.DB) error {
			return do(ctx, operation.NewStore(d), args)
		})
	}
}

// eachOperation returns the function of a command that calls do for each of its arguments, which are ids of operations. After each
// call the command prints the id and the text in the parameter done.
func (t *Tool[O]) eachOperation(done string, do func(ctx context.Context, ops *operation.Store, id string) error) func(*cobra.Command, []string) error {
	return t.withOperations(func(ctx context.Context, ops *operation.Store, ids []string) error {
		for _, id := range ids {
			if err := do(ctx, ops, id); err != nil {
				return err
			}
			if err := t.done(map[string]any{"id": id, "result": done}, "%s %s", id, done); err != nil {
				return err
			}
		}
		return nil
	})
}

// states are the states of operations.
var states = []string{
	string(operation.Running), string(operation.Undoing), string(operation.Succeeded), string(operation.Failed), string(operation.TimedOut), string(operation.Canceled),
}

func (t *Tool[O]) listOperations() *cobra.Command {
	var filter operation.Filter
	var state string
	resource := cmp.Or(t.r.c.Resource, "resource")
	cmd := &cobra.Command{
		Use: "list", Short: "List operations, the newest first", Args: noArguments,
		RunE: func(cmd *cobra.Command, args []string) error {
			if state != "" && !slices.Contains(states, state) {
				return unknownName("state", state, slices.Values(states))
			}
			if filter.Limit < 0 {
				return usageError{fault.New(fault.Invalid, "flag --limit: %d is less than 0", filter.Limit)}
			}
			filter.State = operation.State(state)
			return t.withOperations(func(ctx context.Context, ops *operation.Store, _ []string) error {
				return t.printOperations(ctx, ops, filter)
			})(cmd, args)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&filter.Resource, resource, "", "only operations on this "+resource)
	flags.StringVar(&filter.Kind, "kind", "", "only operations of this kind")
	flags.StringVar(&state, "state", "", "only operations in this state: "+strings.Join(states, ", "))
	flags.BoolVar(&filter.Open, "open", false, "only operations that have not ended")
	flags.BoolVar(&filter.Unknown, "unknown", false, "only unknown operations: no running process knows them, and they wait for a process of the release that began them")
	flags.IntVar(&filter.Limit, "limit", 100, "highest number of operations")
	flags.StringVar(&filter.Marker, "marker", "", "ID of the last operation of the previous page")
	return cmd
}

func (t *Tool[O]) printOperations(ctx context.Context, ops *operation.Store, filter operation.Filter) (err error) {
	found := []operation.Operation{}
	if filter.Limit > 0 { // with limit 0 the list is empty
		if found, err = ops.List(ctx, filter); err != nil {
			return err
		}
	}
	var rows [][]string
	for i := range found {
		o := &found[i]
		rows = append(rows, []string{o.ID, o.Kind, o.Resource, string(o.State), runnerOf(o), o.Created.Format(time.RFC3339), o.Error})
	}
	return t.Print([]string{"id", "kind", "resource", "state", "runner", "created", "error"}, rows, found)
}

// showOperations returns the command "operation show". It prints JSON, or YAML if the flag --output says so, because an operation has
// lists and data that do not fit into a table.
func (t *Tool[O]) showOperations() *cobra.Command {
	resource := cmp.Or(t.r.c.Resource, "resource")
	return &cobra.Command{
		Use: "show ID...", Short: "Show operations, as JSON or YAML, with each attempt at each step", Args: cobra.MinimumNArgs(1),
		Long: fmt.Sprintf("Show operations, as JSON or YAML, with each attempt at each step. Several operations are several documents; in YAML a line --- is between them.\n\n"+
			"ID is that of an operation. The operations on a %s are listed by: %s operation list --%s %s", resource, t.r.c.Name, resource, strings.ToUpper(resource)),
		RunE: t.withOperations(func(ctx context.Context, ops *operation.Store, ids []string) error {
			format := t.f.output
			if format == formatTable {
				format = formatJSON
			}
			for _, id := range ids {
				o, err := ops.Show(ctx, id)
				if err != nil {
					return err
				}
				if err := t.printAs(format, o); err != nil {
					return err
				}
			}
			return nil
		}),
	}
}

// runnerOf returns the process that runs an operation, "unknown operation", "waits for PEER", or "-".
func runnerOf(o *operation.Operation) string {
	switch {
	case o.UnknownSince != nil:
		return "unknown operation"
	case o.Owner != "" && !o.State.Ended():
		return o.Owner
	case o.WaitsFor != "" && !o.State.Ended():
		return "waits for " + o.WaitsFor
	}
	return "-"
}

// dlqCommand returns the command dlq, which manages dead letters: messages that no service could handle.
func (t *Tool[O]) dlqCommand() *cobra.Command {
	var all bool
	cmd := &cobra.Command{Use: "dlq", Short: "Manage dead letters: messages that no service could handle"}
	requeue := &cobra.Command{
		Use: "requeue {ID... | --all}", Short: "Publish dead letters to their original topic again", Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, ids []string) error {
			return t.endLetters(cmd.Context(), ids, all, rpc.Requeue, "requeued")
		},
	}
	drop := &cobra.Command{
		Use: "drop {ID... | --all}", Short: "Delete dead letters", Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, ids []string) error {
			return t.endLetters(cmd.Context(), ids, all, rpc.Drop, "dropped")
		},
	}
	for _, c := range []*cobra.Command{requeue, drop} {
		c.Flags().BoolVar(&all, "all", false, "all dead letters, instead of IDs")
	}
	cmd.AddCommand(&cobra.Command{
		Use: "list", Short: "List dead letters", Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return t.listLetters(cmd.Context()) },
	}, &cobra.Command{
		Use: "show ID...", Short: "Show dead letters with all details", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, ids []string) error {
			return t.eachLetter(cmd.Context(), ids, false, func(l *rpc.DeadLetter) rpc.Verdict {
				t.showLetter(l)
				return rpc.Keep
			})
		},
	}, requeue, drop)
	return cmd
}

// letters reads the dead-letter queues of all interfaces at once, because each one is read until no further dead letter comes. It calls decide
// once for each dead letter, with the name of its interface, for one dead letter at a time.
func (t *Tool[O]) letters(ctx context.Context, decide func(iface string, l *rpc.DeadLetter) rpc.Verdict) (err error) {
	l, err := t.r.load(t.f)
	if err != nil {
		return err
	}
	if l.base.TransportURL == "" {
		return l.place(optionError("transport_url", fault.New(fault.Invalid, "is not set, and the command needs the bus")))
	}
	if strings.HasPrefix(l.base.TransportURL, memoryURL) {
		return l.place(optionError("transport_url", fault.New(fault.Invalid, "%s is a bus in the memory of one process, which no command reaches", memoryURL)))
	}
	// watermill-amqp delivers only few messages at once. amqpbus has no such limit, and can read the same queues.
	bus, err := openBus(&l.base.Options, strings.TrimPrefix(l.base.TransportURL, "watermill-"), quiet)
	if err != nil {
		return l.place(optionError("transport_url", err))
	}
	if err := bus.Start(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bus.Stop(context.WithoutCancel(ctx))) }()
	errs := make([]error, len(t.r.c.Interfaces))
	var wg sync.WaitGroup
	var deciding sync.Mutex
	for at, i := range t.r.c.Interfaces {
		wg.Go(func() {
			errs[at] = rpc.DeadLetters(ctx, bus, i, func(l *rpc.DeadLetter) rpc.Verdict {
				deciding.Lock()
				defer deciding.Unlock()
				return decide(i.Name, l)
			})
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// letterView is a dead letter as the commands show it.
type letterView struct {
	ID        string            `json:"id"`
	Interface string            `json:"interface"`
	Method    string            `json:"method"`
	Failures  int               `json:"failures"`
	DiedAt    time.Time         `json:"dead_lettered_at"`
	Host      string            `json:"host"`
	Reason    string            `json:"reason"`
	Topic     string            `json:"topic,omitempty"`
	Metadata  map[string]string `json:"metadata,omitempty"`
	Payload   json.RawMessage   `json:"payload,omitempty"`
}

func (t *Tool[O]) listLetters(ctx context.Context) error {
	data := []letterView{}
	var rows [][]string
	err := t.letters(ctx, func(iface string, l *rpc.DeadLetter) rpc.Verdict {
		reason, _, _ := strings.Cut(l.Reason, "\n")
		data = append(data, letterView{ID: l.ID, Interface: iface, Method: l.Info.Method, Failures: l.Failures, DiedAt: l.DiedAt, Host: l.Server, Reason: reason})
		return rpc.Keep
	})
	switch {
	case err != nil && len(data) == 0: // an empty list would say that the bus has no dead letters
		return err
	case len(data) == 0 && t.f.output == formatTable:
		_, err = fmt.Fprintln(t.Out, "no dead letters")
		return err
	}
	slices.SortStableFunc(data, func(a, b letterView) int { return strings.Compare(a.Interface, b.Interface) })
	for i := range data {
		l := &data[i]
		rows = append(rows, []string{l.ID, l.Interface, l.Method, strconv.Itoa(l.Failures), l.DiedAt.Format(time.DateTime), l.Host, l.Reason})
	}
	return errors.Join(err, t.Print([]string{"id", "interface", "method", "failures", "dead-lettered at", "host", "reason"}, rows, data))
}

// eachLetter calls do for each dead letter with one of the ids, or for all. Errors: a usageError if an id is empty; NotFound if an id
// does not exist, after do was called for the others.
func (t *Tool[O]) eachLetter(ctx context.Context, ids []string, all bool, do func(*rpc.DeadLetter) rpc.Verdict) error {
	if slices.Contains(ids, "") { // an empty id would match all dead letters without an id
		return usageError{fault.New(fault.Invalid, "the id of a dead letter is empty")}
	}
	missing := map[string]bool{}
	for _, id := range ids {
		missing[id] = true
	}
	err := t.letters(ctx, func(_ string, l *rpc.DeadLetter) rpc.Verdict {
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

// endLetters requeues or drops the dead letters with the ids, or all, and prints how many. The parameter done is the word that is printed, such as
// dropped.
func (t *Tool[O]) endLetters(ctx context.Context, ids []string, all bool, v rpc.Verdict, done string) error {
	if (len(ids) == 0) != all {
		return usageError{fault.New(fault.Invalid, "give the ids of the dead letters, or --all, but not both")}
	}
	n := 0
	err := t.eachLetter(ctx, ids, all, func(*rpc.DeadLetter) rpc.Verdict {
		n++
		return v
	})
	if err != nil && n == 0 {
		return err
	}
	return errors.Join(err, t.done(map[string]any{done: n}, "%d dead letters %s", n, done))
}

func (t *Tool[O]) showLetter(l *rpc.DeadLetter) {
	if t.f.output != formatTable {
		v := letterView{
			ID: l.ID, Interface: l.Info.Interface, Method: l.Info.Method, Failures: l.Failures, DiedAt: l.DiedAt, Host: l.Server, Reason: l.Reason,
			Topic: l.Topic, Metadata: l.Metadata, Payload: l.Payload,
		}
		if !json.Valid(l.Payload) {
			v.Payload, _ = json.Marshal(string(l.Payload)) // a string has a JSON form
		}
		_ = t.printAs(t.f.output, v) // an error of standard output is ignored
		return
	}
	_, _ = fmt.Fprintf(t.Out, "id                %s\nreason            %s\nfailures          %d\ndead-lettered at  %s\nhost              %s\ntopic             %s\nmetadata\n", // as above
		l.ID, l.Reason, l.Failures, l.DiedAt.Format(time.RFC3339), l.Server, l.Topic)
	for _, k := range slices.Sorted(maps.Keys(l.Metadata)) {
		_, _ = fmt.Fprintf(t.Out, "  %s: %s\n", k, l.Metadata[k]) // as above
	}
	_, _ = fmt.Fprintf(t.Out, "payload           %s\n", l.Payload) // as above
}
