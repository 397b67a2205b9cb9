package idempotency_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"
	"go.uber.org/goleak"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/service/api"
	"github.com/armature-go/armature/service/idempotency"
)

// killVar is an environment variable. It makes the test binary a process that serves one request and kills itself between the commit and the
// reply. Its value is the URL of the database.
const killVar = "ARMATURE_TEST_IDEMPOTENCY_KILL"

func TestMain(m *testing.M) {
	if url := os.Getenv(killVar); url != "" {
		fmt.Println(killed(context.Background(), url))
		os.Exit(1) // not reached: the process has killed itself
	}
	goleak.VerifyTestMain(m)
}

type newThing struct {
	Name string `json:"name"`
}

type oneThing struct {
	ID     int64  `json:"id"`
	Name   string `json:"name"`
	Secret string `json:"secret" rule:"secret"`
}

// fixture is an API with things, whose names are unique.
type fixture struct {
	d     *sqlx.DB
	keys  *idempotency.Store
	mux   *api.Mux
	after func() // is called after the commit of the handler
}

var component = db.Migrations{Files: os.DirFS("testdata")}

func newFixture(d *sqlx.DB, cfg idempotency.Config) *fixture {
	cfg.DB = d
	f := &fixture{d: d, keys: idempotency.New(cfg)}
	f.mux = api.New(api.Config{
		Logger: slog.New(slog.DiscardHandler),
		Authenticate: func(r *http.Request) (reqctx.Request, error) {
			user, role, _ := strings.Cut(r.Header.Get("X-Test-User"), "/")
			return reqctx.Request{ProjectID: r.Header.Get("X-Test-Project"), UserID: user, Roles: []string{role}}, nil
		},
		Enforce: func(ctx context.Context, rule string, _ map[string]any) error {
			if role := reqctx.From(ctx).Roles[0]; role == "admin" || rule == "create" && role != "reader" {
				return nil
			}
			return fault.New(fault.Denied, "Policy doesn't allow %s to be performed.", rule)
		},
	})
	api.HandleRoute(f.mux, api.Route{Pattern: "POST /things", Rule: "create", Idempotency: f.keys}, f.create)
	api.HandleRoute(f.mux, api.Route{Pattern: "POST /outside", Idempotency: f.keys}, func(ctx context.Context, r *api.Request[newThing]) (oneThing, error) {
		return oneThing{}, r.Keep(ctx, oneThing{})
	})
	return f
}

func (f *fixture) create(ctx context.Context, r *api.Request[newThing]) (out oneThing, err error) {
	err = db.Tx(ctx, f.d, func(ctx context.Context, tx *sqlx.Tx) error {
		var n int64
		if err := tx.GetContext(ctx, &n, "SELECT COUNT(*) FROM things"); err != nil {
			return err
		}
		out = oneThing{ID: n + 1, Name: r.Body.Name, Secret: "s" + strconv.FormatInt(n, 10)}
		if _, err := db.Exec(ctx, tx, "INSERT INTO things (id, name) VALUES (?, ?)", out.ID, out.Name); errors.Is(err, fault.Conflict) {
			return fault.New(fault.Conflict, "the name is taken")
		} else if err != nil {
			return err
		}
		r.Accepted("/things/" + strconv.FormatInt(out.ID, 10))
		return r.Keep(ctx, out)
	})
	if f.after != nil {
		f.after()
	}
	r.ReplyHeader.Set("X-Late", "1") // after Keep: without effect
	return out, err
}

// answer is what a client sees of a reply.
type answer struct {
	status         int
	body, location string
}

func (f *fixture) post(ctx context.Context, path, body, key string, header ...string) answer {
	r := httptest.NewRequestWithContext(ctx, http.MethodPost, path, strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("X-Test-Project", "p1")
	r.Header.Set("X-Test-User", "u1")
	if key != "" {
		r.Header.Set("Idempotency-Key", key)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	f.mux.ServeHTTP(w, r)
	return answer{w.Code, w.Body.String(), w.Header().Get("Location") + w.Header().Get("X-Late")}
}

func (f *fixture) count(t *testing.T) int {
	t.Helper()
	var n int
	if err := f.d.GetContext(t.Context(), &n, "SELECT COUNT(*) FROM things"); err != nil {
		t.Fatal(err)
	}
	return n
}

func each(t *testing.T, run func(t *testing.T, d *sqlx.DB)) {
	t.Helper()
	dbtest.Each(t, []db.Migrations{idempotency.Migrations, component}, run)
}

// TestRepeated: a request with the key, path and body of an earlier request of the user gets the answer of the earlier one. A request
// with the same key that differs in path, query or body gets 422. A failed request does not use up its key.
func TestRepeated(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, d *sqlx.DB) {
		f := newFixture(d, idempotency.Config{})
		first := f.post(t.Context(), "/things", `{"name": "a"}`, "k1")
		if want := (answer{202, `{"id":1,"name":"a"}`, "/things/1"}); first != want {
			t.Fatalf("%+v, want %+v", first, want)
		}
		for _, tt := range []struct {
			path, body, key string
			header          []string
			want            string // "": the first answer
			things          int
		}{
			{"/things", `{"name": "a"}`, "k1", nil, "", 1},
			{"/things", `{"name":"a"}`, `"k1"`, nil, "", 1}, // in quotes, as in the draft, and the same body in another form
			{"/things", `{"name": "a"}`, "k1", []string{"X-Test-User", "u1"}, "", 1},
			{"/things", `{"name": "b"}`, "k1", nil, "422 The Idempotency-Key was used for another request.", 1},
			{"/things?x=1", `{"name": "a"}`, "k1", nil, "422", 1},
			{"/outside", `{"name": "a"}`, "k1", nil, "422", 1},
			{"/things", `{"nam": "a"}`, "k1", nil, "400", 1},
			{"/things", `{"name": "a"}`, "", nil, "409", 1}, // without a key it is executed, and its name is taken
			{"/things", `{"name": "c"}`, "k2", nil, `202 {"id":2,"name":"c"}`, 2},
			{"/things", `{"name": "c"}`, "k2", nil, `202 {"id":2,"name":"c"}`, 2},
			{"/things", `{"name": "a"}`, "k3", nil, "409", 2},                     // a failed request keeps nothing
			{"/things", `{"name": "d"}`, "k3", nil, `202 {"id":3,"name":"d"}`, 3}, // so its key is free
			{"/things", `{"name": "e"}`, "k4", []string{"Idempotency-Key", "k5"}, "400 must be given once", 3},
			{"/things", `{"name": "e"}`, "k 4", nil, "400 visible ASCII", 3},
			{"/things", `{"name": "e"}`, `""`, nil, "400 visible ASCII", 3},
			{"/things", `{"name": "e"}`, strings.Repeat("k", 256), nil, "400 visible ASCII", 3},
			{"/things", `{"name": "e"}`, strings.Repeat("k", 255), nil, `202 {"id":4,"name":"e"}`, 4},
			{"/outside", `{"name": "a"}`, "k6", nil, "500", 4}, // Keep is outside of a transaction
		} {
			got := f.post(t.Context(), tt.path, tt.body, tt.key, tt.header...)
			status, says, _ := strings.Cut(tt.want, " ")
			if tt.want == "" && got != first || tt.want != "" && (strconv.Itoa(got.status) != status || !strings.Contains(got.body, says)) {
				t.Errorf("%s %s %.20q %v: %+v, want %s", tt.path, tt.body, tt.key, tt.header, got, tt.want)
			}
			if n := f.count(t); n != tt.things {
				t.Errorf("%s %s %.20q: %d things, want %d", tt.path, tt.body, tt.key, n, tt.things)
			}
		}
		var raw []byte
		if err := d.GetContext(t.Context(), &raw, "SELECT reply FROM idempotency_replies LIMIT 1"); err != nil || bytes.Contains(raw, []byte("name")) {
			t.Errorf("the database has a reply that can be read: %q, %v", raw, err)
		}
	})
}

// TestScope: keys of two projects are different, and so are those of two users of a project, because an answer may have a password. The same user gets the same
// answer, unless the user may see other fields now. The policy is enforced for a repetition.
func TestScope(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, d *sqlx.DB) {
		f := newFixture(d, idempotency.Config{})
		post := func(project, user, name string) string {
			r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/things", strings.NewReader(`{"name": "`+name+`"}`))
			for header, value := range map[string]string{"Content-Type": "application/json", "X-Test-Project": project, "X-Test-User": user, "Idempotency-Key": "k"} {
				r.Header.Set(header, value)
			}
			w := httptest.NewRecorder()
			f.mux.ServeHTTP(w, r)
			return fmt.Sprint(w.Code, " ", w.Body)
		}
		for _, tt := range []struct{ project, user, name, want string }{
			{"p1", "u1", "a", `202 {"id":1,"name":"a"}`},
			{"p1", "u2", "b", `202 {"id":2,"name":"b"}`},
			{"p2", "u1", "c", `202 {"id":3,"name":"c"}`},
			{"p1", "u1/reader", "a", "403"},
			{"p1", "u1/admin", "a", "422"}, // the answer has the field secret
			{"", "u1", "d", `202 {"id":4,"name":"d"}`},
			{"", "u2", "e", `202 {"id":5,"name":"e"}`},
			{"", "u3/admin", "f", `202 {"id":6,"name":"f","secret":"s5"}`},
		} {
			for range 2 {
				if got := post(tt.project, tt.user, tt.name); !strings.HasPrefix(got, tt.want) {
					t.Errorf("%+v: %s", tt, got)
				}
			}
		}
	})
}

// TestAtOnce: if several requests with one key run at once, one is executed, and all get its answer.
func TestAtOnce(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, d *sqlx.DB) {
		for round := range 5 {
			f := newFixture(d, idempotency.Config{})
			before := f.count(t)
			body := fmt.Sprintf(`{"name": "at-once-%d"}`, round)
			var wg sync.WaitGroup
			answers := make([]answer, 8)
			for i := range answers {
				wg.Go(func() { answers[i] = f.post(t.Context(), "/things", body, fmt.Sprint("k", round)) })
			}
			wg.Wait()
			for _, a := range answers {
				if a != answers[0] || a.status != 202 {
					t.Errorf("%+v and %+v", a, answers[0])
				}
			}
			if n := f.count(t); n != before+1 {
				t.Errorf("%d things, want %d", n, before+1)
			}
		}
	})
}

// TestOtherWins: another request with the key commits while the handler runs, and the handler then fails. The client gets the answer of the
// other request, or 422 if the other request had another body.
func TestOtherWins(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, d *sqlx.DB) {
		f := newFixture(d, idempotency.Config{})
		other := newFixture(d, idempotency.Config{})
		for name, want := range map[string]int{"x": 202, "y": 422} {
			winner := answer{}
			handler := api.New(api.Config{Logger: slog.New(slog.DiscardHandler), Authenticate: func(r *http.Request) (reqctx.Request, error) {
				return reqctx.Request{ProjectID: r.Header.Get("X-Test-Project"), UserID: r.Header.Get("X-Test-User")}, nil
			}, Enforce: func(context.Context, string, map[string]any) error { return fault.New(fault.Denied, "no") }})
			api.HandleRoute(handler, api.Route{Pattern: "POST /things", Idempotency: f.keys}, func(ctx context.Context, _ *api.Request[newThing]) (oneThing, error) {
				winner = other.post(ctx, "/things", `{"name": "x"}`, "key-"+name)
				return oneThing{}, fault.New(fault.Conflict, "the name is taken")
			})
			f.mux = handler
			got := f.post(t.Context(), "/things", `{"name": "`+name+`"}`, "key-"+name)
			if got.status != want || want == 202 && got != winner {
				t.Errorf("%s: %+v, the other %+v", name, got, winner)
			}
			if _, err := d.ExecContext(t.Context(), "DELETE FROM things"); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// TestExpiry: an expired key is free, and Prune removes its row.
func TestExpiry(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, d *sqlx.DB) {
		f := newFixture(d, idempotency.Config{Lifetime: time.Hour})
		rows := func() (n int) {
			if err := d.GetContext(t.Context(), &n, "SELECT COUNT(*) FROM idempotency_replies"); err != nil {
				t.Fatal(err)
			}
			return n
		}
		expire := func() {
			if _, err := d.ExecContext(t.Context(), "UPDATE idempotency_replies SET expires_at = ?", time.Now().UTC().Add(-time.Hour)); err != nil {
				t.Fatal(err)
			}
		}
		f.post(t.Context(), "/things", `{"name": "a"}`, "k")
		if err := f.keys.Prune(t.Context()); err != nil || rows() != 1 {
			t.Errorf("%v, %d rows", err, rows())
		}
		expire()
		if got := f.post(t.Context(), "/things", `{"name": "b"}`, "k"); got.status != 202 || f.count(t) != 2 || rows() != 1 {
			t.Errorf("%+v, %d things, %d rows", got, f.count(t), rows())
		}
		if again := f.post(t.Context(), "/things", `{"name": "b"}`, "k"); again.status != 202 || f.count(t) != 2 {
			t.Errorf("%+v", again)
		}
		expire()
		if err := f.keys.Prune(t.Context()); err != nil || rows() != 0 {
			t.Errorf("%v, %d rows", err, rows())
		}
	})
}

// TestTargetIsJudgedFirst: the rule of an object is also enforced for a repetition, before the kept reply is read.
func TestTargetIsJudgedFirst(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, d *sqlx.DB) {
		f := newFixture(d, idempotency.Config{})
		calls := 0
		api.HandleTarget(f.mux, api.Route{Pattern: "POST /things/{id}/copy", Rule: "create", Idempotency: f.keys}, api.Target[string]{
			Load:    func(_ context.Context, r *http.Request) (string, error) { return r.PathValue("id"), nil },
			Policy:  func(string) map[string]any { return map[string]any{"project_id": "p1"} },
			Missing: func(*http.Request) error { return fault.New(fault.NotFound, "no such thing") },
		}, func(ctx context.Context, r *api.Request[newThing], _ string) (api.None, error) {
			calls++
			return api.None{}, db.Tx(ctx, d, func(ctx context.Context, _ *sqlx.Tx) error { return r.Keep(ctx, api.None{}) })
		})
		for _, tt := range []struct {
			user string
			want int
		}{{"u1/reader", 403}, {"u1", 204}, {"u1", 204}, {"u1/reader", 403}} {
			r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/things/1/copy", strings.NewReader(`{"name": "a"}`))
			for name, value := range map[string]string{"Content-Type": "application/json", "X-Test-Project": "p1", "X-Test-User": tt.user, "Idempotency-Key": "k"} {
				r.Header.Set(name, value)
			}
			w := httptest.NewRecorder()
			if f.mux.ServeHTTP(w, r); w.Code != tt.want {
				t.Errorf("%s: %d %s, want %d", tt.user, w.Code, w.Body, tt.want)
			}
		}
		if calls != 1 {
			t.Errorf("executed %d times", calls)
		}
	})
}

// killed serves one request in a process that dies between the commit and the reply.
func killed(ctx context.Context, url string) error {
	d, err := db.Open(ctx, db.Config{URL: url})
	if err != nil {
		return err
	}
	f := newFixture(d, idempotency.Config{})
	f.after = func() { _ = syscall.Kill(os.Getpid(), syscall.SIGKILL) }
	return errors.New(f.post(ctx, "/things", `{"name": "a"}`, "k").body)
}

// TestKilled: a process dies between the commit and the reply. The repeated request gets the reply, and is not executed again.
func TestKilled(t *testing.T) {
	t.Parallel()
	dbtest.EachURL(t, func(t *testing.T, url string) {
		d, err := db.Open(t.Context(), db.Config{URL: url})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = d.Close() })
		if err := db.Migrate(t.Context(), d, idempotency.Migrations, component); err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), killVar+"="+url)
		out, err := cmd.CombinedOutput()
		if e, ok := errors.AsType[*exec.ExitError](err); !ok || e.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL { //nolint:forcetypeassert // on Unix
			t.Fatalf("the process was not killed: %v\n%s", err, out)
		}
		f := newFixture(d, idempotency.Config{})
		if n := f.count(t); n != 1 {
			t.Fatalf("%d things were committed", n)
		}
		got := f.post(t.Context(), "/things", `{"name": "a"}`, "k")
		if want := (answer{202, `{"id":1,"name":"a"}`, "/things/1"}); got != want || f.count(t) != 1 {
			t.Errorf("%+v, want %+v; %d things", got, want, f.count(t))
		}
	})
}

// TestRowOfAnother: a row that was changed in the database is an error, and not another client's reply.
func TestRowOfAnother(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, d *sqlx.DB) {
		f := newFixture(d, idempotency.Config{})
		f.post(t.Context(), "/things", `{"name": "a"}`, "k")
		if _, err := d.ExecContext(t.Context(), "UPDATE idempotency_replies SET reply = ?", []byte(strings.Repeat("x", 100))); err != nil {
			t.Fatal(err)
		}
		if got := f.post(t.Context(), "/things", `{"name": "a"}`, "k"); got.status != 500 || f.count(t) != 1 {
			t.Errorf("%+v", got)
		}
	})
}

// TestWrongUse: a use that has no effect is refused.
func TestWrongUse(t *testing.T) {
	t.Parallel()
	keys := noReplies{}
	post := func(m *api.Mux, method, path string) string {
		r := httptest.NewRequestWithContext(t.Context(), method, path, http.NoBody)
		r.Header.Set("Idempotency-Key", "k")
		w := httptest.NewRecorder()
		m.ServeHTTP(w, r)
		return fmt.Sprint(w.Code, " ", w.Body)
	}
	m := api.New(api.Config{Logger: slog.New(slog.DiscardHandler)})
	nothing := func(context.Context, *api.Request[api.None]) (api.None, error) { return api.None{}, nil }
	keep := func(ctx context.Context, r *api.Request[api.None]) (api.None, error) {
		return api.None{}, r.Keep(ctx, api.None{})
	}
	api.Handle(m, "POST /none", nothing)
	api.Handle(m, "DELETE /none", nothing)
	api.HandleRoute(m, api.Route{Pattern: "POST /forgets", Idempotency: keys}, nothing)
	api.Handle(m, "PUT /keeps", keep)
	api.HandleRoute(m, api.Route{Pattern: "POST /keeps", Idempotency: keys}, keep)
	api.HandleRoute(m, api.Route{Pattern: "POST /other", Idempotency: keys}, func(ctx context.Context, r *api.Request[api.None]) (api.None, error) {
		return api.None{}, r.Keep(ctx, "x")
	})
	for request, want := range map[string]string{
		"POST /none": "400", "DELETE /none": "204", "POST /forgets": "500", "PUT /keeps": "500", "POST /keeps": "204", "POST /other": "500",
	} {
		method, path, _ := strings.Cut(request, " ")
		if got := post(m, method, path); !strings.HasPrefix(got, want) {
			t.Errorf("%s: %s, want %s", request, got, want)
		}
	}
	raw, err := json.Marshal(m.OpenAPI(api.About{}, api.Version{}))
	if err != nil || strings.Count(string(raw), `"Idempotency-Key"`) != 3 || strings.Count(string(raw), `"422"`) != 3 {
		t.Errorf("%v: %s", err, raw)
	}
	for says, f := range map[string]func(){
		"Idempotency is for POST and PATCH": func() { api.HandleRoute(m, api.Route{Pattern: "PUT /x", Idempotency: keys}, nothing) },
		"needs a DB":                        func() { idempotency.New(idempotency.Config{}) },
		"not below 0":                       func() { idempotency.New(idempotency.Config{DB: new(sqlx.DB), Lifetime: -1}) },
	} {
		func() {
			defer func() {
				if text := fmt.Sprint(recover()); !strings.Contains(text, says) {
					t.Errorf("%s, want %s", text, says)
				}
			}()
			f()
		}()
	}
}

// noReplies keeps nothing.
type noReplies struct{}

func (noReplies) Find(context.Context, api.ReplyKey) (*api.KeptReply, error) { return nil, nil } //nolint:nilnil // no reply

func (noReplies) Keep(context.Context, api.ReplyKey, api.KeptReply) error { return nil }
