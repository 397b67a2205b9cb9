package session_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gophercloud/gophercloud/v2"

	"github.com/armature-go/armature/examples/nova-mini/session"
	"github.com/armature-go/armature/fault"
)

// newService returns a session with a fake service, and a function that returns the number of logins. The parameter answer is the status with which the service answers each
// request. The parameter valid is the lifetime of tokens.
func newService(t *testing.T, answer int, valid time.Duration) (*session.Session, func() int) {
	t.Helper()
	logins := 0
	mux := http.NewServeMux()
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	mux.HandleFunc("POST /v3/auth/tokens", func(w http.ResponseWriter, _ *http.Request) {
		logins++
		w.Header().Set("X-Subject-Token", fmt.Sprintf("own-%d", logins))
		w.WriteHeader(http.StatusCreated)
		ends := time.Now().Add(valid).UTC().Format("2006-01-02T15:04:05.000000Z")
		_, _ = fmt.Fprintf(w, `{"token": {"expires_at": %q, "catalog": [{"type": "network", "endpoints": [{"interface": "public", "region_id": "r", "url": %q}]}]}}`, ends, srv.URL)
	})
	mux.HandleFunc("/v2.0/", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(answer) })
	s, err := session.New(session.Config{Type: "network", Version: "v2.0", AuthURL: srv.URL + "/v3", Username: "u", Password: "p", UserTokens: true})
	if err != nil {
		t.Fatal(err)
	}
	return s, func() int { return logins }
}

// TestTranslate: if the service refuses the token of a client, with 401 or 403, the error is Unauthenticated or Denied. Every other failure is Unavailable.
func TestTranslate(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		status int
		token  string
		want   fault.Code
	}{
		{401, "client", fault.Unauthenticated},
		{403, "client", fault.Denied},
		{500, "client", fault.Unavailable},
		{404, "client", fault.Unavailable},
		{401, "", fault.Unavailable},
		{403, "", fault.Unavailable},
		{500, "", fault.Unavailable},
	} {
		s, _ := newService(t, tt.status, time.Hour)
		c, err := s.Client(t.Context(), tt.token)
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.Get(t.Context(), c.ServiceURL("ports"), nil, &gophercloud.RequestOpts{}) //nolint:bodyclose // it closes the body of an error
		if got := s.Translate(t.Context(), c, err); fault.CodeOf(got) != tt.want {
			t.Errorf("%+v: %v", tt, got)
		}
	}
}

// TestKeystoneAway: if Keystone refuses the login, fails or is away, the error names Keystone and the service, both at the first login and when a token has expired. The error has no text of a
// reply.
func TestKeystoneAway(t *testing.T) {
	t.Parallel()
	for name, status := range map[string]int{"refuses": 401, "fails": 500, "is away": 0} {
		var srv *httptest.Server
		logins, refuse := 0, false
		srv = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch {
			case r.Method != http.MethodPost:
				w.WriteHeader(http.StatusUnauthorized)
				_, _ = io.WriteString(w, "secret")
			case refuse && status == 0:
				panic(http.ErrAbortHandler)
			case refuse:
				http.Error(w, "secret", status)
			default:
				logins++
				w.Header().Set("X-Subject-Token", "t")
				w.WriteHeader(http.StatusCreated)
				_, _ = fmt.Fprintf(w, `{"token": {"expires_at": "2100-01-01T00:00:00.000000Z", "catalog": [{"type": "network", "endpoints": [{"interface": "public", "region_id": "r", "url": %q}]}]}}`, srv.URL)
			}
		}))
		t.Cleanup(srv.Close)
		open := func() *session.Session {
			s, err := session.New(session.Config{Type: "network", Version: "v2.0", AuthURL: srv.URL + "/v3", Username: "nova", Password: "p"})
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		used := open()
		c, err := used.Client(t.Context(), "")
		if err != nil || logins != 1 {
			t.Fatal(logins, err)
		}
		refuse = true
		_, err = c.Get(t.Context(), c.ServiceURL("ports"), nil, nil) //nolint:bodyclose // it closes the body of an error
		_, first := open().Client(t.Context(), "")
		for when, err := range map[string]error{"later": used.Translate(t.Context(), c, err), "at first": first} {
			text := fmt.Sprint(err)
			if fault.CodeOf(err) != fault.Unavailable || !strings.Contains(text, "ask the network service: log in at Keystone ("+srv.URL+"/v3) as the user nova: ") || strings.Contains(text, "secret") {
				t.Errorf("Keystone %s, %s: %s", name, when, text)
			}
			if status > 0 && !strings.HasSuffix(text, fmt.Sprintf("is answered with status %d", status)) {
				t.Errorf("Keystone %s, %s: %s", name, when, text)
			}
			if f, ok := errors.AsType[*fault.Error](err); !ok || f.User != "The network service cannot be used now, because the login at Keystone, the identity service, has failed." {
				t.Errorf("Keystone %s, %s, for users: %+v", name, when, f)
			}
		}
	}
}

// TestRenewToken: only a token that expires soon is renewed.
func TestRenewToken(t *testing.T) {
	t.Parallel()
	for valid, want := range map[time.Duration]int{time.Hour: 1, time.Minute: 2} {
		s, logins := newService(t, 200, valid)
		c, err := s.Client(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		s.RenewToken(t.Context(), c, 5*time.Minute)
		if got := c.Token(); logins() != want || got != fmt.Sprintf("own-%d", want) {
			t.Errorf("valid for %v: %d logins, token %s", valid, logins(), got)
		}
	}
}
