package api_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/examples/nova-mini/api"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/rpctest"
	restapi "github.com/armature-go/armature/service/api"
)

// counter is the reply to a client that reads a body to the end. It only counts the bytes.
type counter struct {
	header http.Header
	status int
	bytes  int
}

func (c *counter) Header() http.Header { return c.header }

func (c *counter) WriteHeader(status int) { c.status = status }

func (c *counter) Write(p []byte) (int, error) {
	c.bytes += len(p)
	return len(p), nil
}

// reader is a client that reads nothing before it is released.
type reader struct {
	counter

	began   *sync.WaitGroup // done when the API begins to write the body
	release chan struct{}
}

func (r *reader) Write(p []byte) (int, error) {
	r.began.Done()
	<-r.release
	return r.counter.Write(p)
}

// TestPageMemory: the memory that a page of servers with all details takes does not grow with the number of servers beyond the page. While clients read slowly, the API holds not much more than the bodies
// of their replies.
func TestPageMemory(t *testing.T) { //nolint:paralleltest // no other test may use memory
	var turn sync.Mutex
	dbtest.Each(t, store.Migrations(), func(t *testing.T, d *sqlx.DB) {
		t.Helper()
		turn.Lock() // the databases take turns
		defer turn.Unlock()
		s := store.New(d)
		client := rpc.NewClient(rpctest.NewBus(t), rpc.ClientConfig{Timeout: 2 * time.Second})
		t.Cleanup(func() { client.Close() })
		h := handler(t, api.Config{Store: s, Client: client, Bus: func(context.Context) error { return nil }, DownAfter: time.Hour, Logger: slog.New(slog.DiscardHandler)}, restapi.Config{})
		get := func(w http.ResponseWriter) {
			r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/v2.1/servers/detail?limit=1000", http.NoBody)
			r.Header.Set("OpenStack-API-Version", "compute 2.96")
			h.ServeHTTP(w, r)
		}
		fill(t, s, d, 1000)
		const slow = 4
		alloc, live, body := measurePage(t, get, slow)
		fill(t, s, d, 3000)
		allocAll, liveAll, _ := measurePage(t, get, slow)
		t.Logf("a body has %d KiB; a reply allocates %d KiB with 1000 servers and %d KiB with 4000; a slow client holds %d KiB and %d KiB", body>>10, alloc>>10, allocAll>>10, live>>10, liveAll>>10)
		if allocAll > alloc*5/4 {
			t.Errorf("a page of 4000 servers allocates %d bytes, and a page of 1000 servers %d", allocAll, alloc)
		}
		if limit := body * 5 / 4; live > limit || liveAll > limit {
			t.Errorf("a slow client holds %d and %d bytes, want at most %d", live, liveAll, limit)
		}
	})
}

// fill adds active servers.
func fill(t *testing.T, s *store.Store, d *sqlx.DB, n int) {
	t.Helper()
	metadata := map[string]string{}
	for i := range 10 {
		metadata[fmt.Sprintf("key-%d", i)] = strings.Repeat("v", 50)
	}
	first := &store.Server{ID: uuid.NewString(), Name: "s", ProjectID: "admin", VCPUs: 1, MemoryMiB: 1, DiskGiB: 1, Metadata: db.JSONOf(metadata)}
	if err := s.CreateServer(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	columns := columnsOf(t, d)
	others := strings.Join(slices.DeleteFunc(columns, func(c string) bool { return c == "id" }), ", ")
	err := db.Tx(t.Context(), d, func(ctx context.Context, tx *sqlx.Tx) error {
		for range n - 1 {
			if _, err := tx.ExecContext(ctx, `INSERT INTO servers (id, `+others+`) SELECT ?, `+others+` FROM servers WHERE id = ?`, uuid.NewString(), first.ID); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// columnsOf returns the names of the columns of the table of servers.
func columnsOf(t *testing.T, d *sqlx.DB) []string {
	t.Helper()
	rows, err := d.QueryContext(t.Context(), `SELECT * FROM servers WHERE 1 = 0`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil || rows.Err() != nil {
		t.Fatal(err, rows.Err())
	}
	return columns
}

// measurePage returns how much a reply allocates, how much of it is still in use for each client that reads slowly, and the size of the body, in bytes.
func measurePage(t *testing.T, get func(http.ResponseWriter), slow int) (alloc, live, body uint64) {
	t.Helper()
	used := func() (total, heap uint64) {
		runtime.GC()
		runtime.GC() // also what is left in pools
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.TotalAlloc, m.HeapAlloc
	}
	for range 5 {
		c := counter{header: http.Header{}}
		before, _ := used()
		get(&c)
		after, _ := used()
		if c.status != http.StatusOK || c.bytes < 1<<20 {
			t.Fatalf("status %d, %d bytes", c.status, c.bytes)
		}
		if is := after - before; alloc == 0 || is < alloc {
			alloc = is
		}
		body = uint64(c.bytes)
	}
	var began, done sync.WaitGroup
	release := make(chan struct{})
	_, before := used()
	for range slow {
		began.Add(1)
		done.Go(func() { get(&reader{counter: counter{header: http.Header{}}, began: &began, release: release}) })
	}
	began.Wait()
	_, after := used()
	close(release)
	done.Wait()
	return alloc, (after - before) / uint64(slow), body
}
