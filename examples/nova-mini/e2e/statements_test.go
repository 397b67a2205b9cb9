package e2e_test

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
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
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/rpctest"
	"github.com/armature-go/armature/service/auth"
)

// maxStatements is the highest number of SQL statements that the creation of a server may need in all services together,
// without BEGIN and COMMIT.
const maxStatements = 22

// TestStatements prints the SQL statements of a server's creation, which carry the request's id, and limits their number.
// The scheduler knows the hosts before, as in a running cloud.
func TestStatements(t *testing.T) {
	t.Parallel()
	dbtest.EachURL(t, func(t *testing.T, url string) {
		var mu sync.Mutex
		statements := map[string][]string{} // by the request's id
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
		if err := s.Migrate(t.Context()); err != nil {
			t.Fatal(err)
		}
		h := allServices(t, s)
		var asked string
		for i := range 2 { // for the second server all caches are filled
			r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/v2.1/servers", strings.NewReader(`{"server": {"name": "s", "flavorRef": "1", "imageRef": "x"}}`))
			r.Header.Set("Content-Type", "application/json")
			w := httptest.NewRecorder()
			if h.ServeHTTP(w, r); w.Code != http.StatusAccepted {
				t.Fatalf("create: %d %s", w.Code, w.Body)
			}
			asked = w.Header().Get("X-Openstack-Request-Id")
			for end := time.Now().Add(30 * time.Second); ; {
				list, err := s.Servers(t.Context(), store.ServerQuery{In: store.AllProjects(), Statuses: []string{"ACTIVE"}, Limit: 5})
				if err != nil {
					t.Fatal(err)
				}
				if len(list) == i+1 {
					break
				}
				if time.Now().After(end) {
					t.Fatal("it is not built")
				}
				<-time.After(10 * time.Millisecond)
			}
		}
		mu.Lock()
		defer mu.Unlock()
		for i, query := range statements[asked] {
			t.Logf("%2d %s", i+1, query)
		}
		if n := len(statements[asked]); n == 0 || n > maxStatements {
			t.Errorf("the creation needs %d statements, want at most %d", n, maxStatements)
		}
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
	cond := conductor.New(conductor.Config{Store: s, Client: client, Host: "c", Ratios: store.Ratios{CPU: 1, RAM: 1, Disk: 1}, Logger: quiet})
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
	return api.New(api.Config{Authenticate: auth.None(api.Administrator), Store: s, Client: client, Ready: fine, Bus: fine, Logger: quiet})
}
