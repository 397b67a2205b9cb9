package auth_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/service"
	"github.com/armature-go/armature/service/api"
	"github.com/armature-go/armature/service/auth"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// request returns a request with a token, or without one if token is empty.
func request(t testing.TB, token string) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "/", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		r.Header.Set("X-Auth-Token", token)
	}
	return r
}

// TestStatic: Static accepts exactly the tokens of its table, never the empty token; None accepts all.
func TestStatic(t *testing.T) {
	t.Parallel()
	ada := reqctx.Request{UserID: "u", ProjectID: "p", Roles: []string{"member"}}
	authenticate := auth.Static(map[string]reqctx.Request{"secret": ada})
	if got, err := authenticate(request(t, "secret")); err != nil || !cmp.Equal(got, ada) {
		t.Errorf("a known token: %+v, %v; want %+v", got, err, ada)
	}
	for _, token := range []string{"", "Secret", "secret "} {
		if _, err := authenticate(request(t, token)); fault.CodeOf(err) != fault.Unauthenticated {
			t.Errorf("token %q: %v, want Unauthenticated", token, err)
		}
	}
	if _, err := auth.Static(map[string]reqctx.Request{"": ada})(request(t, "")); fault.CodeOf(err) != fault.Unauthenticated {
		t.Errorf("an empty token in the table: %v, want Unauthenticated", err)
	}
	if got, err := auth.None(ada)(request(t, "")); err != nil || !cmp.Equal(got, ada) {
		t.Errorf("None: %+v, %v; want %+v", got, err, ada)
	}
}

// fakeKeystone answers as Keystone's v3 API does.
type fakeKeystone struct {
	*httptest.Server

	mu        sync.Mutex
	tokens    map[string]string // Keystone's description of each client's token
	own       string            // the token of the service
	status    int               // the status of each reply; 0: the status that Keystone would send
	logins    atomic.Int32
	validated atomic.Int32
}

func newKeystone(t testing.TB) *fakeKeystone {
	t.Helper()
	f := &fakeKeystone{tokens: map[string]string{}}
	f.Server = httptest.NewServer(http.HandlerFunc(f.serve))
	t.Cleanup(f.Close)
	return f
}

// RoundTrip answers without a socket, for a bubble of testing/synctest.
func (f *fakeKeystone) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	f.serve(w, r)
	return w.Result(), nil
}

func (f *fakeKeystone) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *fakeKeystone) serve(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.status != 0 {
		w.WriteHeader(f.status)
		_, _ = io.WriteString(w, f.tokens["body"])
		return
	}
	switch r.Method + " " + r.URL.Path {
	case "POST /v3/auth/tokens":
		var in struct {
			Auth struct {
				Identity struct {
					Password struct {
						User struct {
							Name, Password string
							Domain         struct{ Name string }
						}
					}
				}
				Scope struct{ Project struct{ Name string } }
			}
		}
		u := &in.Auth.Identity.Password.User
		if json.NewDecoder(r.Body).Decode(&in) != nil || u.Name != "volume" || u.Password != "pw" || u.Domain.Name != "Default" || in.Auth.Scope.Project.Name != "service" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		f.own = fmt.Sprintf("own-%d", f.logins.Add(1))
		w.Header().Set("X-Subject-Token", f.own)
		w.WriteHeader(http.StatusCreated)
	case "GET /v3/auth/tokens":
		f.validated.Add(1)
		token, ok := f.tokens[r.Header.Get("X-Subject-Token")]
		if r.URL.Query().Get("allow_expired") != "1" && r.Header.Get("X-Subject-Token") == "expired" {
			ok = false
		}
		switch {
		case r.Header.Get("X-Auth-Token") != f.own:
			w.WriteHeader(http.StatusUnauthorized)
		case !ok:
			w.WriteHeader(http.StatusNotFound)
		default:
			_, _ = fmt.Fprintf(w, `{"token": %s}`, token)
		}
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

// member returns Keystone's description of a token that expires after d.
func member(d time.Duration) string {
	return fmt.Sprintf(`{"expires_at": %q, "user": {"id": "u1", "name": "ada"}, "project": {"id": "p1"}, "roles": [{"name": "member"}, {"name": "reader"}]}`,
		time.Now().Add(d).UTC().Format("2006-01-02T15:04:05.000000Z"))
}

// open returns a client of f. The function change may change the client's configuration.
func open(t testing.TB, f *fakeKeystone, change func(*auth.KeystoneConfig)) *auth.Keystone {
	t.Helper()
	cfg := auth.KeystoneConfig{Username: "volume", Password: "pw", ProjectName: "service", Logger: slog.New(slog.DiscardHandler)}
	if f.Server != nil {
		cfg.URL = f.URL + "/v3"
	}
	if change != nil {
		change(&cfg)
	}
	k, err := auth.NewKeystone(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.Stop(t.Context()) })
	return k
}

// TestKeystone: a token of each scope has the right identity, Keystone is asked once for each token, and
// the service's own token is renewed.
func TestKeystone(t *testing.T) {
	t.Parallel()
	f := newKeystone(t)
	k := open(t, f, nil)
	life := time.Now().Add(time.Hour).UTC().Format(time.RFC3339)
	f.set(func() {
		f.tokens["project"] = member(time.Hour)
		f.tokens["domain"] = `{"expires_at": "` + life + `", "user": {"id": "u2"}, "domain": {"id": "d1"}, "roles": [{"name": "admin"}]}`
		f.tokens["system"] = `{"expires_at": "` + life + `", "user": {"id": "u3"}, "system": {"all": true}, "roles": [{"name": "admin"}]}`
		f.tokens["unscoped"] = `{"expires_at": "` + life + `", "user": {"id": "u4"}}`
		f.tokens["past"] = member(-time.Second)
	})
	for range 3 {
		for token, want := range map[string]reqctx.Request{
			"project":  {UserID: "u1", ProjectID: "p1", Roles: []string{"member", "reader"}},
			"domain":   {UserID: "u2", DomainID: "d1", Roles: []string{"admin"}},
			"system":   {UserID: "u3", SystemScope: "all", Roles: []string{"admin"}},
			"unscoped": {UserID: "u4"},
		} {
			if got, err := k.Authenticate(request(t, token)); err != nil || !cmp.Equal(got, want) {
				t.Errorf("%s: %+v, %v; want %+v", token, got, err, want)
			}
		}
		for _, token := range []string{"", "unknown", "past"} {
			if _, err := k.Authenticate(request(t, token)); fault.CodeOf(err) != fault.Unauthenticated || err.Error() != "The request you have made requires authentication." {
				t.Errorf("token %q: %v", token, err)
			}
		}
	}
	if l, v := f.logins.Load(), f.validated.Load(); l != 1 || v != 6 {
		t.Errorf("%d logins, %d validations; want 1 and 6: one for each token", l, v)
	}
	f.set(func() { f.own = "another" }) // the service's own token is not valid any more
	f.set(func() { f.tokens["late"] = member(time.Hour) })
	if _, err := k.Authenticate(request(t, "late")); err != nil {
		t.Errorf("after the service's own token expired: %v", err)
	}
	if l := f.logins.Load(); l != 2 {
		t.Errorf("%d logins, want 2", l)
	}
}

// TestServiceTokens: a user's expired token is accepted with the token of a service that has the
// right role, and not otherwise.
func TestServiceTokens(t *testing.T) {
	t.Parallel()
	f := newKeystone(t)
	k := open(t, f, nil)
	life := time.Now().Add(time.Hour).UTC().Format(time.RFC3339)
	f.set(func() {
		f.tokens["expired"] = member(-time.Hour)
		f.tokens["service"] = `{"expires_at": "` + life + `", "user": {"id": "nova"}, "project": {"id": "p9"}, "roles": [{"name": "service"}]}`
		f.tokens["reader"] = `{"expires_at": "` + life + `", "user": {"id": "u7"}, "project": {"id": "p9"}, "roles": [{"name": "reader"}]}`
	})
	for range 2 { // first from Keystone, then from the cache
		for _, tt := range []struct {
			token, service string
			accepted       bool
		}{
			{"expired", "", false},
			{"expired", "service", true},
			{"expired", "reader", false},
			{"expired", "unknown", false},
			{"expired", "expired", false},
			{"unknown", "service", false},
			{"", "service", false},
		} {
			r := request(t, tt.token)
			r.Header.Set("X-Service-Token", tt.service)
			got, err := k.Authenticate(r)
			if tt.accepted && (err != nil || got.UserID != "u1") || !tt.accepted && fault.CodeOf(err) != fault.Unauthenticated {
				t.Errorf("token %q with service token %q: %+v, %v; want accepted: %v", tt.token, tt.service, got, err, tt.accepted)
			}
		}
	}
}

// TestKeystoneCache: an answer is cached for TTL or RefusedTTL, at most until the token expires, and
// unknown tokens do not displace valid ones.
func TestKeystoneCache(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := &fakeKeystone{tokens: map[string]string{}}
		k := open(t, f, func(c *auth.KeystoneConfig) {
			c.URL, c.Client = "http://keystone", &http.Client{Transport: f}
			c.TTL, c.RefusedTTL, c.MaxCached = time.Hour, 50*time.Millisecond, 20
		})
		f.set(func() { f.tokens["short"], f.tokens["long"] = member(300*time.Millisecond), member(time.Hour) })
		expect := func(token string, code fault.Code) { // 0: accepted
			t.Helper()
			if _, err := k.Authenticate(request(t, token)); err == nil != (code == 0) || err != nil && fault.CodeOf(err) != code {
				t.Errorf("token %s: %v, want code %v", token, err, code)
			}
		}
		expect("short", 0)
		expect("long", 0)
		expect("new", fault.Unauthenticated)
		f.set(func() { f.tokens["new"] = member(time.Hour); delete(f.tokens, "short"); delete(f.tokens, "long") })
		<-time.After(50 * time.Millisecond)
		expect("new", 0)
		expect("short", 0)
		<-time.After(250*time.Millisecond - time.Nanosecond)
		expect("short", 0)
		<-time.After(time.Nanosecond)
		expect("short", fault.Unauthenticated)
		expect("long", 0)
		for i := range 200 {
			expect(fmt.Sprintf("guess-%d", i), fault.Unauthenticated)
		}
		expect("long", 0) // guesses do not displace a valid token
	})
}

// TestKeystoneStart: Start logs in. Without Keystone it fails with Unavailable, so that a service waits and calls Start
// again. If Keystone rejects the login, Start fails with Unauthenticated, which ends the service. No error has the
// password.
func TestKeystoneStart(t *testing.T) {
	t.Parallel()
	f := newKeystone(t)
	k := open(t, f, nil)
	for status, want := range map[int]fault.Code{500: fault.Unavailable, 404: fault.Unavailable, 401: fault.Unauthenticated, 403: fault.Unauthenticated} {
		f.set(func() { f.status = status })
		if err := k.Start(t.Context()); err == nil || fault.CodeOf(err) != want || !strings.Contains(err.Error(), f.URL) || strings.Contains(err.Error(), "pw") {
			t.Errorf("status %d: %v, want %v with the URL", status, err, want)
		}
	}
	f.set(func() { f.status = 0 })
	if err := k.Start(t.Context()); err != nil || f.logins.Load() != 1 {
		t.Errorf("%d logins, %v; want 1", f.logins.Load(), err)
	}
	f.Close()
	if err := open(t, f, nil).Start(t.Context()); fault.CodeOf(err) != fault.Unavailable {
		t.Errorf("nothing listens: %v, want Unavailable", err)
	}
}

// TestKeystoneOutage: while Keystone is down, or its replies make no sense, only cached tokens are accepted; all other
// tokens get status 503.
func TestKeystoneOutage(t *testing.T) {
	t.Parallel()
	f := newKeystone(t)
	k := open(t, f, func(c *auth.KeystoneConfig) { c.Timeout = 500 * time.Millisecond })
	mux := api.New(api.Config{Authenticate: k.Authenticate, Challenge: k.Challenge(), Logger: slog.New(slog.DiscardHandler)})
	api.Handle(mux, "GET /", func(ctx context.Context, _ *api.Request[api.None]) (map[string]string, error) {
		return map[string]string{"user": reqctx.From(ctx).UserID}, nil
	})
	ask := func(token string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, request(t, token))
		return w
	}
	f.set(func() { f.tokens["known"], f.tokens["other"] = member(time.Hour), member(time.Hour) })
	if w := ask("known"); w.Code != 200 || !strings.Contains(w.Body.String(), `"u1"`) {
		t.Errorf("a valid token: %d %s, want 200 with u1", w.Code, w.Body)
	}
	if w := ask("wrong"); w.Code != 401 || w.Header().Get("WWW-Authenticate") != `Keystone uri="`+f.URL+`/v3"` {
		t.Errorf("an unknown token: %d %v, want 401 with the challenge", w.Code, w.Header())
	}
	if err := k.Check(t.Context()); err != nil {
		t.Error(err)
	}
	for _, status := range []int{500, 503, 404, 200, 302, 403} {
		f.set(func() { f.status, f.own = status, "gone" })
		for _, token := range []string{fmt.Sprint("other-", status), fmt.Sprint("third-", status)} {
			w := ask(token)
			if status == 404 && w.Code == 401 { // 404 is Keystone's reply for an unknown token
				continue
			}
			if w.Code != 503 || w.Header().Get("Retry-After") == "" || strings.Contains(w.Body.String(), token) {
				t.Errorf("Keystone answers with status %d: reply %d %s, want 503 without the token", status, w.Code, w.Body)
			}
		}
		if w := ask("known"); w.Code != 200 {
			t.Errorf("Keystone answers with status %d: a cached token has reply %d %s, want 200", status, w.Code, w.Body)
		}
	}
	f.set(func() { f.status = 500 })
	ask("fourth")
	if err := k.Check(t.Context()); fault.CodeOf(err) != fault.Unavailable {
		t.Errorf("Check while Keystone is down: %v, want Unavailable", err)
	}
	f.set(func() { f.status = 0 })
	if err := k.Check(t.Context()); err != nil {
		t.Errorf("Check after Keystone is back: %v", err)
	}
	if w := ask("fourth"); w.Code != 401 {
		t.Errorf("an unknown token after Keystone is back: %d, want 401", w.Code)
	}
	f.Close()
	if w := ask("fifth"); w.Code != 503 {
		t.Errorf("a token while Keystone does not listen: %d, want 503", w.Code)
	}
	for name, change := range map[string]func(*auth.KeystoneConfig){
		"no URL": func(c *auth.KeystoneConfig) { c.URL = "keystone:5000" }, "no user": func(c *auth.KeystoneConfig) { c.Username = "" },
		"no password": func(c *auth.KeystoneConfig) { c.Password = "" }, "no project": func(c *auth.KeystoneConfig) { c.ProjectName = "" },
	} {
		cfg := auth.KeystoneConfig{URL: "http://k/v3", Username: "u", Password: "secret", ProjectName: "p"}
		change(&cfg)
		if _, err := auth.NewKeystone(cfg); fault.CodeOf(err) != fault.Invalid || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v, want Invalid without the password", name, err)
		}
	}
	wrong := open(t, newKeystone(t), func(c *auth.KeystoneConfig) { c.Password = "other" })
	if err := wrong.Check(t.Context()); fault.CodeOf(err) != fault.Unavailable || !strings.Contains(err.Error(), "rejects the service's own") {
		t.Errorf("Check with the service's wrong password: %v", err)
	}
	if _, err := wrong.Authenticate(request(t, "x")); fault.CodeOf(err) != fault.Unavailable {
		t.Errorf("Authenticate with the service's wrong password: %v, want Unavailable", err)
	}
}

// TestConcurrentRequests: many requests with one token share one call to Keystone.
func TestConcurrentRequests(t *testing.T) {
	t.Parallel()
	f := newKeystone(t)
	k := open(t, f, nil)
	f.set(func() { f.tokens["one"] = member(time.Hour) })
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			if _, err := k.Authenticate(request(t, "one")); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if v := f.validated.Load(); v > 4 {
		t.Errorf("%d validations of one token, want at most 4", v)
	}
}

var _ interface {
	service.Part
	service.Checker
} = (*auth.Keystone)(nil)

// BenchmarkCached measures Authenticate with a token in the cache.
func BenchmarkCached(b *testing.B) {
	f := newKeystone(b)
	k := open(b, f, nil)
	f.set(func() { f.tokens[strings.Repeat("g", 200)] = member(time.Hour) })
	r := request(b, strings.Repeat("g", 200))
	if _, err := k.Authenticate(r); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := k.Authenticate(r); err != nil {
			b.Fatal(err)
		}
	}
}
