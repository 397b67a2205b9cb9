package component

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/spf13/cobra"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/service/membership"
	"github.com/armature-go/armature/service/operation"
)

// statusView is what the command status shows. Members and Operations are nil, and null in JSON, if they cannot be read.
type statusView struct {
	Members    []memberView     `json:"members"`
	Operations []operationCount `json:"operations"`
	Processes  []processView    `json:"processes"`
}

// operationCount is the number of open operations of a kind in a state.
type operationCount struct {
	Kind   string    `json:"kind"`
	State  string    `json:"state"`
	Count  int       `json:"count"`
	Oldest time.Time `json:"oldest_at"`
}

// processView is what a process of this host says about itself.
type processView struct {
	Process string `json:"process"`
	State   string `json:"state"` // ready, not ready, not running (there is no socket, or no process listens at it) or not reached
	Address string `json:"address"`
	Why     string `json:"why,omitempty"`
}

// statusCommand returns the command status. It shows the members and operations in the database, and the state that the processes
// of this host report at their admin listeners.
func (t *Tool[O]) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use: "status", Args: noArguments,
		Short: "Show the services, the number of open operations by kind and state, and whether the processes of this host are ready (with admin_listen)",
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := t.r.load(t.f)
			if err != nil {
				return err
			}
			var v statusView
			var asking sync.WaitGroup // a silent database and a silent process together take no longer than one of them
			asking.Go(func() { v.Processes = t.askProcesses(cmd.Context(), l.base, l.opts) })
			if t.r.c.Migrations == nil {
				v.Members, v.Operations = []memberView{}, []operationCount{}
			} else if err = t.WithDatabase(cmd.Context(), func(ctx context.Context, o *O, d *sqlx.DB) error {
				return v.readDatabase(ctx, findOptions[Options](o), d)
			}); err != nil {
				err = fmt.Errorf("members and operations cannot be read: %w", err)
			}
			asking.Wait()
			return errors.Join(t.printStatus(&v), err)
		},
	}
}

// readDatabase reads the members, and counts the open operations.
func (v *statusView) readDatabase(ctx context.Context, o *Options, d *sqlx.DB) error {
	found, err := membership.New(membership.Config{DB: d, DownAfter: o.ServiceDownTime}).List(ctx, "")
	if err != nil {
		return err
	}
	open, err := operation.NewStore(d).CountOpen(ctx)
	if err != nil {
		return err
	}
	now, err := db.Now(ctx, d) // the clock by which CountOpen reports ages
	if err != nil {
		return err
	}
	v.Members, v.Operations = describeMembers(found), []operationCount{}
	for _, c := range open {
		v.Operations = append(v.Operations, operationCount{Kind: c.Kind, State: string(c.State), Count: c.Count, Oldest: now.Add(-c.Oldest)})
	}
	return nil
}

// askProcesses asks the processes of this host at their admin listeners, all at once. Without the option admin_listen the result is
// empty. A disabled service without a socket is left out.
func (t *Tool[O]) askProcesses(ctx context.Context, o *Options, all *O) []processView {
	out := []processView{}
	switch {
	case o.Admin == "":
		return out
	case !strings.Contains(o.Admin, servicePlaceholder): // without {service}, all processes share one address
		out = append(out, processView{Process: "-", Address: o.Admin})
	default:
		joint := o.adminAddr(AllInOne)
		for _, s := range t.r.c.Services {
			expected := !isSocket(joint) && (s.Disabled == nil || !s.Disabled(all)) // if the all-in-one process has a socket, leave out services without a socket of their own
			if addr := o.adminAddr(s.Name); expected || isSocket(addr) {
				out = append(out, processView{Process: s.Name, Address: addr})
			}
		}
		if isSocket(joint) {
			out = append(out, processView{Process: AllInOne, Address: joint})
		}
	}
	var wg sync.WaitGroup
	for i := range out {
		wg.Go(func() { out[i].ask(ctx) })
	}
	wg.Wait()
	return out
}

// isSocket reports whether an address is a Unix socket that exists.
func isSocket(addr string) bool {
	path, ok := strings.CutPrefix(addr, "unix:")
	_, err := os.Stat(path)
	return ok && err == nil
}

// adminTimeout is how long a process may take to say whether it is ready. It is longer than the process waits for its checks: service.Config.CheckTimeout
// and a second.
const adminTimeout = 10 * time.Second

// ask asks the process whether it is ready, and sets State and Why.
func (v *processView) ask(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	network, addr := "tcp", v.Address
	if path, ok := strings.CutPrefix(v.Address, "unix:"); ok {
		network, addr = "unix", path
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, addr)
	}}}
	v.State = "not reached"
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost/readyz", http.NoBody)
	if err != nil {
		v.Why = err.Error()
		return
	}
	res, err := client.Do(r)
	if err != nil {
		if network == "unix" && errors.Is(err, syscall.ECONNREFUSED) {
			v.State, v.Why = "not running", "no process listens at the socket: the last one was killed"
			return
		}
		if errors.Is(err, fs.ErrNotExist) {
			v.State = "not running"
		}
		v.Why = errors.Unwrap(err).Error() // without the URL, which is not that of the process
		return
	}
	defer res.Body.Close() //nolint:errcheck // the body is only read
	var reply struct {
		Status, Phase string
		Checks        []struct{ Name, Status, Error string }
	}
	if err := json.NewDecoder(res.Body).Decode(&reply); err != nil || reply.Status == "" {
		v.Why = "the reply is not that of an admin listener: " + res.Status
		return
	}
	var why []string
	for _, c := range reply.Checks {
		if c.Error != "" {
			why = append(why, c.Name+": "+c.Error)
		}
	}
	v.State = "ready"
	if res.StatusCode != http.StatusOK {
		v.State, v.Why = "not ready", cmp.Or(strings.Join(why, "; "), reply.Phase)
	}
}

func (t *Tool[O]) printStatus(v *statusView) error {
	if t.f.output != formatTable {
		return t.printAs(t.f.output, v)
	}
	var tables []func() error
	if v.Members != nil {
		tables = append(tables, func() error { return t.Print(memberColumns, memberRows(v.Members), nil) }, func() error {
			var rows [][]string
			for _, c := range v.Operations {
				rows = append(rows, []string{c.Kind, c.State, strconv.Itoa(c.Count), c.Oldest.Format(time.RFC3339)})
			}
			return t.Print([]string{"operations", "state", "count", "oldest"}, rows, nil)
		})
	}
	if len(v.Processes) > 0 {
		tables = append(tables, func() error {
			var rows [][]string
			for _, p := range v.Processes {
				rows = append(rows, []string{p.Process, p.State, p.Address, p.Why})
			}
			return t.Print([]string{"process", "state", "address", "why"}, rows, nil)
		})
	}
	for i, table := range tables {
		if i > 0 {
			_, _ = fmt.Fprintln(t.Out) // the next line returns the error
		}
		if err := table(); err != nil {
			return err
		}
	}
	return nil
}
