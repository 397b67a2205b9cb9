package e2e_test

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/examples/drivers/fake"
	"github.com/armature-go/armature/examples/nova-mini/api"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/conductor"
	"github.com/armature-go/armature/examples/nova-mini/scheduler"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/examples/nova-mini/worker"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/listing"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/rpctest"
	restapi "github.com/armature-go/armature/service/api"
	"github.com/armature-go/armature/service/auth"
	"github.com/armature-go/armature/service/policy"
)

// TestStatements prints the SQL statements that all services together run for one request to the API. It fails if there are too
// many. BEGIN and COMMIT do not count. An earlier request has filled the caches, such as the scheduler's hosts.
func TestStatements(t *testing.T) {
	t.Parallel()
	dbtest.EachURL(t, func(t *testing.T, url string) {
		var mu sync.Mutex
		statements := map[string][]string{} // the statements, by the request's id
		d, err := db.Open(t.Context(), db.Config{URL: url, Observe: func(ctx context.Context, query string) func(error) {
			mu.Lock()
			defer mu.Unlock()
			if query == "COMMIT" {
				return func(error) {}
			}
			id := reqctx.From(ctx).ID
			statements[id] = append(statements[id], strings.Join(strings.Fields(query), " "))
			return func(error) {}
		}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.Close() })
		s := store.New(d)
		if err := db.Migrate(t.Context(), d, store.Migrations()...); err != nil {
			t.Fatal(err)
		}
		h := allServices(t, s)
		send := func(path, body string) (id string) {
			r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, path, strings.NewReader(body))
			r.Header.Set("Content-Type", "application/json")
			w := httptest.NewRecorder()
			if h.ServeHTTP(w, r); w.Code != http.StatusAccepted {
				t.Fatalf("%s: %d %s", body, w.Code, w.Body)
			}
			return w.Header().Get("X-Openstack-Request-Id")
		}
		wait := func(status string, n int) (ids []string) {
			waittest.Until(t, "servers in "+status, func() bool {
				list, err := s.Servers(t.Context(), store.ServerQuery{In: store.AllProjects(), Statuses: []string{status}, Query: listing.Query{Limit: 50}})
				if err != nil {
					t.Fatal(err)
				}
				ids = nil
				for _, srv := range list {
					ids = append(ids, srv.ID)
				}
				return len(ids) == n
			})
			return ids
		}
		// bound makes ten requests, checks the number of statements of each request, and prints the statements of the request that needed the most.
		bound := func(what string, most int, request func(i int) (id string)) {
			var worst []string
			var counts []int
			for i := range 10 {
				id := request(i)
				mu.Lock()
				got := slices.Clone(statements[id])
				mu.Unlock()
				counts = append(counts, len(got))
				if len(got) > len(worst) {
					worst = got
				}
			}
			for i, query := range worst {
				t.Logf("%s %2d %s", what, i+1, query)
			}
			if t.Logf("%s: %v statements", what, counts); slices.Min(counts) == 0 || slices.Max(counts) > most {
				t.Errorf("%s needs %v statements, want at most %d each time", what, counts, most)
			}
		}
		create := func() string {
			return send("/v2.1/servers", `{"server": {"name": "s", "flavorRef": "1", "imageRef": "x"}}`)
		}
		create() // fills all caches
		ids := wait("ACTIVE", 1)
		bound("create", 26, func(i int) string {
			id := create()
			ids = wait("ACTIVE", i+2)
			return id
		})
		bound("stop", 14, func(i int) string {
			id := send("/v2.1/servers/"+ids[i]+"/action", `{"os-stop": null}`)
			wait("SHUTOFF", i+1)
			return id
		})
	})
}

// allServices runs all services in this process, with one host, and returns the API.
func allServices(t *testing.T, s *store.Store) http.Handler {
	t.Helper()
	bus, quiet := rpctest.NewBus(t), slog.New(slog.DiscardHandler)
	client := rpc.NewClient(bus, rpc.ClientConfig{})
	t.Cleanup(func() { client.Close() })
	sched, err := scheduler.New(scheduler.Config{Store: s, DownAfter: time.Minute, Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	cond := conductor.New(conductor.Config{
		Store: s, Client: client, Host: "c", Ratios: store.Ratios{CPU: 1, RAM: 1, Disk: 1}, Logger: quiet,
		Poll: time.Minute, // an operation that a poll finds before its notification comes is looked at twice
	})
	d, err := fake.New(fake.Config{Host: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	work := worker.New(worker.Config{Host: "n1", Driver: func() compute.Driver { return d }, Client: client, Logger: quiet})
	for _, srv := range []struct {
		cfg rpc.ServerConfig
		add func(*rpc.Server)
	}{
		{rpc.ServerConfig{Interface: compute.Conductor, Host: "c", Logger: quiet}, cond.Register},
		{rpc.ServerConfig{Interface: compute.Scheduler, Host: "s", Logger: quiet}, sched.Register},
		{rpc.ServerConfig{Interface: compute.Worker, Host: "n1", Logger: quiet}, work.Register},
	} {
		server := rpc.NewServer(bus, srv.cfg)
		srv.add(server)
		if err := server.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = server.Stop(context.WithoutCancel(t.Context())) })
	}
	if err := errors.Join(cond.Runner.Start(t.Context()), work.Report(t.Context())); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cond.Runner.Stop(context.WithoutCancel(t.Context())) })
	fine := func(context.Context) error { return nil }
	rules, err := policy.New(api.Rules(), policy.Config{Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	m := restapi.New(api.HTTP(restapi.Config{Authenticate: auth.None(api.Administrator), Enforce: rules.Enforce, Logger: quiet}))
	api.Register(m, api.Config{Store: s, Client: client, Bus: fine, Logger: quiet})
	return m
}
