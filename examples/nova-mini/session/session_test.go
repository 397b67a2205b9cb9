package session_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/gophercloud/gophercloud/v2"

	"github.com/armature-go/armature/examples/nova-mini/session"
	"github.com/armature-go/armature/fault"
)

// newService returns a session with a service that has one answer, and a function that counts the logins. Tokens are valid for a time.
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
	t.Cleanup(s.CloseIdle)
	return s, func() int { return logins }
}

// TestTranslate: what the service says of the token of a client is for the client. The other failures are those of the service.
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

// TestRenewToken: only a token that ends soon is renewed.
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
