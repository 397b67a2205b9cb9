package placement_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/scheduler"
	"github.com/armature-go/armature/scheduler/placement"
)

// placerVar is the environment variable that makes the test binary a scheduler process. Its value has the form "URL first
// n": the URL of the database, the number of the first request that the process places, and how many requests the process
// places.
const placerVar = "ARMATURE_TEST_PLACER"

func TestMain(m *testing.M) {
	if job := os.Getenv(placerVar); job != "" {
		if err := place(job); err != nil {
			_, _ = fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// tally counts, for a scheduler process, the placed requests, those of them that had a claim before, the refused claims,
// and the repeated calls of Place.
type tally struct{ Placed, Again, Refused, Late int }

func (t *tally) add(o tally) {
	t.Placed, t.Again, t.Refused, t.Late = t.Placed+o.Placed, t.Again+o.Again, t.Refused+o.Refused, t.Late+o.Late
}

// place runs a scheduler process. The process has its own state of the hosts for its decisions,
// and places one request after the other.
func place(job string) error {
	var u string
	var first, n int
	if _, err := fmt.Sscan(job, &u, &first, &n); err != nil {
		return err
	}
	ctx := context.Background()
	d, err := db.Open(ctx, db.Config{URL: u})
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }() // all requests are placed
	store := placement.NewSQL(d)
	var fleet scheduler.Fleet[*provider]
	s, err := scheduler.New(scheduler.Config[*request, *provider]{
		Filters:    filters(placement.Options{MaxTasks: 1e6, MaxConsumers: 1e6}),
		Weighers:   placement.Weighers[*request, *provider](placement.Options{}),
		Picker:     scheduler.Subset(20),
		CountsOnly: true,
	})
	if err != nil {
		return err
	}
	p := placement.Placer[*request, *provider]{Scheduler: s, Store: store, Hosts: func(ctx context.Context, fresh bool) ([]*provider, error) {
		if _, oldest := fleet.Age(); fresh || oldest > time.Second || fleet.Hosts() == nil {
			list, err := store.Providers(ctx)
			if err != nil {
				return nil, err
			}
			fleet.Report(list...)
		}
		return fleet.Hosts(), nil
	}}
	var t tally
	for i := first; i < first+n; i++ {
		q := &request{Consumer: "c" + strconv.Itoa(i), Resources: placement.Resources{"VCPU": 1, "MEMORY_MB": 512}}
		got, err := p.Place(ctx, q)
		for fault.CodeOf(err) == fault.Unavailable || fault.CodeOf(err) == fault.Unknown { // repeat, as a conductor does
			t.Late++
			got, err = p.Place(ctx, q)
		}
		if err != nil {
			return fmt.Errorf("request %d: %w", i, err)
		}
		t.Placed++
		t.Refused += len(got.Refused)
		if got.AlreadyClaimed {
			t.Again++
			continue
		}
		fleet.Update(got.Host.ID, func(p *provider) *provider { return p.With(q) })
	}
	return json.NewEncoder(os.Stdout).Encode(t)
}

// The size of TestProcesses: eight scheduler processes place requests on hosts that are just
// large enough for all of them.
const (
	processes = 8
	requests  = 1000 // the number of requests of each process
	hostCount = 100
	hostSize  = processes * requests / hostCount
)

// TestProcesses: many scheduler processes use one database. Every request is placed,
// although the hosts have room for exactly all requests, and no host is ever above
// its capacity. This also holds while the processes are killed at random, and while
// COMMIT fails as on a Galera cluster if a transaction of another node was first.
func TestProcesses(t *testing.T) { //nolint:tparallel // one after the other: each needs the machine
	t.Parallel()
	if testing.Short() {
		t.Skip("takes a minute")
	}
	for _, tt := range []struct {
		name     string
		kill     bool
		conflict float64
	}{{"undisturbed", false, 0}, {"killed", true, 0}, {"conflicts at COMMIT", false, 0.1}} {
		t.Run(tt.name, func(t *testing.T) {
			run := &crowd{t: t, url: dbtest.MySQL(t)}
			d := open(t, run.url)
			store := placement.NewSQL(d)
			for i := range hostCount {
				p := &provider{ID: fmt.Sprintf("n%03d", i), Inventories: map[string]placement.Inventory{
					"VCPU": {Total: hostSize}, "MEMORY_MB": {Total: hostSize * 1024},
				}}
				if _, err := store.Put(t.Context(), p); err != nil {
					t.Fatal(err)
				}
			}
			if tt.conflict > 0 {
				run.url = run.conflicts(tt.conflict)
			}
			done := make(chan struct{})
			var audit sync.WaitGroup
			looks := 0
			audit.Go(func() {
				for {
					var over int
					if err := d.GetContext(t.Context(), &over, `SELECT COUNT(*) FROM placement_inventories i WHERE used > capacity OR capacity <
						(SELECT COALESCE(SUM(amount), 0) FROM placement_allocations a WHERE a.provider = i.provider AND a.class = i.class)`); err != nil || over > 0 {
						t.Errorf("%d inventories over their capacity, %v", over, err)
						return
					}
					looks++
					select {
					case <-done:
						return
					case <-time.After(50 * time.Millisecond):
					}
				}
			})
			start := time.Now()
			run.all(tt.kill)
			took := time.Since(start)
			close(done)
			audit.Wait()
			t.Logf("%d processes placed %d requests in %v, %.0f a second: %d claims refused, %d placed by a process before it was killed, %d decided again; "+
				"%d processes killed, %d conflicts at COMMIT; no host over its capacity in %d checks",
				processes, run.Placed, took.Round(time.Millisecond), float64(run.Placed)/took.Seconds(), run.Refused, run.Again, run.Late, run.killed, run.injected.Load(), looks)
			if run.Placed != processes*requests || looks < 3 || tt.kill && run.killed == 0 || tt.conflict > 0 && run.injected.Load() < 100 {
				t.Errorf("%d placed, want %d; %d killed, %d conflicts, %d checks", run.Placed, processes*requests, run.killed, run.injected.Load(), looks)
			}
			claims, err := store.Claims(t.Context())
			if err != nil || len(claims) != processes*requests {
				t.Fatalf("%d claims, %v", len(claims), err)
			}
			wrong, err := store.Recount(t.Context(), true)
			if err != nil || len(wrong) > 0 {
				t.Errorf("%d hosts whose used amounts are not the sums of the claims, %v", len(wrong), err)
			}
			list, err := store.Providers(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range list {
				if p.Inventories["VCPU"].Free() != 0 || p.Consumers != hostSize {
					t.Errorf("%s: %+v, %d consumers", p.ID, p.Inventories["VCPU"], p.Consumers)
				}
			}
		})
	}
}

// crowd is several scheduler processes.
type crowd struct {
	t   *testing.T
	url string

	mu sync.Mutex
	tally
	killed   int
	injected atomic.Int64
}

func (c *crowd) all(kill bool) {
	seed := rand.Uint64()
	c.t.Logf("seed %d", seed)
	var wg sync.WaitGroup
	for i := range processes {
		wg.Go(func() { c.process(i*requests, kill, rand.New(rand.NewPCG(seed, uint64(i)))) })
	}
	wg.Wait()
}

// process runs a scheduler process until the process has placed all its requests. If the parameter kill is true, the
// first three processes are killed, unless they end earlier, and the next process places the requests again.
func (c *crowd) process(first int, kill bool, r *rand.Rand) {
	for life := 0; ; life++ {
		cmd := exec.CommandContext(c.t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d %d", placerVar, c.url, first, requests))
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			c.t.Error(err)
			return
		}
		var timer *time.Timer
		if kill && life < 3 {
			timer = time.AfterFunc(300*time.Millisecond+time.Duration(r.Int64N(int64(2*time.Second))), func() { _ = cmd.Process.Kill() }) // fails if the process has ended
		}
		var got tally
		derr := json.NewDecoder(out).Decode(&got)
		err = cmd.Wait()
		if timer != nil {
			timer.Stop()
		}
		c.mu.Lock()
		switch {
		case err == nil && derr == nil:
			c.add(got)
			c.mu.Unlock()
			return
		case timer == nil:
			c.mu.Unlock()
			c.t.Errorf("a scheduler process: %v, %v", err, derr)
			return
		}
		c.killed++
		c.mu.Unlock()
	}
}

// conflicts returns the URL of a proxy in front of the database. The proxy makes a part of
// all COMMITs fail as on a Galera cluster: with a deadlock error, and without effects of
// the transaction.
func (c *crowd) conflicts(part float64) string {
	c.t.Helper()
	u, err := url.Parse(c.url)
	if err != nil {
		c.t.Fatal(err)
	}
	l, err := (&net.ListenConfig{}).Listen(c.t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		c.t.Fatal(err)
	}
	var wg sync.WaitGroup
	c.t.Cleanup(func() {
		_ = l.Close() // fails only if it is closed twice
		wg.Wait()
	})
	to := u.Host
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				_ = c.proxy(conn, to, part) // an error ends the connection
			})
		}
	})
	u.Host = l.Addr().String()
	return u.String()
}

// proxy forwards MySQL's packets, one command at a time. In place of a COMMIT that is to
// fail, it sends ROLLBACK to the server and a deadlock error to the client.
func (c *crowd) proxy(client net.Conn, to string, part float64) error {
	defer func() { _ = client.Close() }()
	server, err := (&net.Dialer{}).DialContext(c.t.Context(), "tcp", to)
	if err != nil {
		return err
	}
	defer func() { _ = server.Close() }()
	var fail atomic.Bool
	back := make(chan error, 1)
	go func() {
		defer func() { _ = client.Close() }() // ends the other direction
		for {
			p, err := packet(server)
			if err != nil {
				back <- err
				return
			}
			if fail.Swap(false) {
				msg := append([]byte{0xff, 1213 & 0xff, 1213 >> 8}, "#40001Deadlock found when trying to get lock; try restarting transaction"...)
				p = append([]byte{byte(len(msg)), 0, 0, p[3]}, msg...)
			}
			if _, err := client.Write(p); err != nil {
				back <- err
				return
			}
		}
	}()
	for {
		p, err := packet(client)
		if err != nil {
			_ = server.Close() // ends the other direction
			return errors.Join(err, <-back)
		}
		if string(p[4:]) == "\x03COMMIT" && rand.Float64() < part {
			c.injected.Add(1)
			fail.Store(true)
			p = append([]byte{9, 0, 0, p[3]}, "\x03ROLLBACK"...)
		}
		if _, err := server.Write(p); err != nil {
			return err
		}
	}
}

// packet reads one MySQL packet, with its header.
func packet(r io.Reader) ([]byte, error) {
	head := make([]byte, 4)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, err
	}
	p := append(head, make([]byte, int(head[0])|int(head[1])<<8|int(head[2])<<16)...)
	_, err := io.ReadFull(r, p[4:])
	return p, err
}
