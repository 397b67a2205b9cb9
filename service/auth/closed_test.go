package auth_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/auth"
)

// TestFailsClosed: only Keystone's own description of a valid token gives a client an identity, and no other server
// gets a token.
func TestFailsClosed(t *testing.T) {
	t.Parallel()
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		t.Errorf("another server got %s %s, with the tokens %q and %q", r.Method, r.URL, r.Header.Get("X-Auth-Token"), r.Header.Get("X-Subject-Token"))
		_, _ = fmt.Fprintf(w, `{"token": %s}`, member(time.Hour))
	}))
	t.Cleanup(other.Close)
	redirect := func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, other.URL+r.URL.Path, http.StatusTemporaryRedirect)
	}
	reply := func(body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(body)) }
	}
	long, _ := json.Marshal(strings.Repeat("x", 2<<20))
	for _, tt := range []struct {
		name            string
		login, validate http.HandlerFunc // nil: Keystone's usual reply
		want            error            // nil: the client gets its identity
	}{
		{"a redirected login", redirect, nil, fault.Unavailable},
		{"a redirected validation", nil, redirect, fault.Unavailable},
		{"an expired token", nil, reply(`{"token": ` + member(-time.Minute) + `}`), fault.Unauthenticated},
		{"another document", nil, reply(`{}`), fault.Unavailable},
		{"a reply that is not JSON", nil, reply(`<html>`), fault.Unavailable},
		{"a long reply", nil, reply(`{"noise": ` + string(long) + `, "token": ` + member(time.Hour) + `}`), fault.Unavailable},
		{"a login without a token", reply(`{}`), nil, fault.Unavailable},
		{"a token that Keystone describes", nil, nil, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := newKeystone(t)
			f.set(func() { f.tokens["t"] = member(time.Hour) })
			front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				h := http.HandlerFunc(f.serve)
				if r.Method == http.MethodPost && tt.login != nil {
					h = tt.login
				} else if r.Method == http.MethodGet && tt.validate != nil {
					h = tt.validate
				}
				h(w, r)
			}))
			t.Cleanup(front.Close)
			var logged strings.Builder
			k := open(t, f, func(c *auth.KeystoneConfig) {
				c.URL, c.Logger = front.URL, slog.New(slog.NewTextHandler(&logged, nil))
			})
			r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", http.NoBody)
			r.Header.Set(auth.Header, "t")
			id, err := k.Authenticate(r)
			if !errors.Is(err, tt.want) || (err == nil) != (id.UserID == "u1") {
				t.Errorf("identity %+v, %v; want %v", id, err, tt.want)
			}
			if strings.Contains(logged.String(), "own-") {
				t.Errorf("the log has a token: %s", &logged)
			}
		})
	}
}
