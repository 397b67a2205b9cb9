package auth_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/gophercloud/gophercloud/v2"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/certtest"
	"github.com/armature-go/armature/internal/keystonetest"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/service/auth"
	"github.com/armature-go/armature/tlsfile"
)

// TestRealKeystone runs against a real Keystone: tokens of each scope have the right identity; a
// revoked token is rejected; a service that Keystone rejects accepts no client; while Keystone is dead
// only cached tokens are accepted.
func TestRealKeystone(t *testing.T) {
	t.Parallel()
	ks := keystonetest.Start(t)
	ks.Role("service")
	services, project := ks.Project("service"), ks.Project("p1")
	ks.Grant(ks.User("volume"), "service", gophercloud.AuthScope{ProjectID: services})
	ks.Grant(ks.User("plain"), "reader", gophercloud.AuthScope{ProjectID: services})
	ada := ks.User("ada")
	inProject, inDomain := gophercloud.AuthScope{ProjectID: project}, gophercloud.AuthScope{DomainID: "default"}
	ks.Grant(ada, "member", inProject)
	ks.Grant(ada, "admin", inDomain)
	ks.Grant(ada, "reader", gophercloud.AuthScope{})

	service := func(user, password string, change func(*auth.KeystoneConfig)) *auth.Keystone {
		cfg := auth.KeystoneConfig{URL: ks.Endpoint, Username: user, Password: password, ProjectName: "service", TTL: 2 * time.Second, Logger: slog.New(slog.DiscardHandler)}
		if change != nil {
			change(&cfg)
		}
		k, err := auth.NewKeystone(cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = k.Stop(context.WithoutCancel(t.Context())) })
		return k
	}
	k := service("volume", keystonetest.Password, nil)
	if err := k.Check(t.Context()); err != nil {
		t.Fatal(err)
	}

	for name, tt := range map[string]struct {
		scope *gophercloud.AuthScope
		want  reqctx.Request
	}{
		"project": {&inProject, reqctx.Request{UserID: ada, ProjectID: project, Roles: []string{"member", "reader"}}}, // in Keystone member implies reader
		"domain":  {&inDomain, reqctx.Request{UserID: ada, DomainID: "default", Roles: []string{"admin", "manager", "member", "reader"}}},
		"system":  {&gophercloud.AuthScope{System: true}, reqctx.Request{UserID: ada, SystemScope: "all", Roles: []string{"reader"}}},
		"none":    {nil, reqctx.Request{UserID: ada}},
	} {
		got, err := k.Authenticate(request(t, ks.Token("ada", tt.scope)))
		slices.Sort(got.Roles)
		got.Roles = slices.DeleteFunc(got.Roles, func(r string) bool { return r == "manager" }) // only newer Keystones have this role
		tt.want.Roles = slices.DeleteFunc(tt.want.Roles, func(r string) bool { return r == "manager" })
		if err != nil || !cmp.Equal(got, tt.want) {
			t.Errorf("scope %s: %+v, %v; want %+v", name, got, err, tt.want)
		}
	}

	revoked, kept := ks.Token("ada", &inProject), ks.Token("ada", &inProject)
	if _, err := k.Authenticate(request(t, revoked)); err != nil {
		t.Errorf("a valid token: %v", err)
	}
	ks.Revoke(revoked)
	waittest.Succeeds(t, "a revoked token to be rejected", func() error {
		if _, err := k.Authenticate(request(t, revoked)); fault.CodeOf(err) != fault.Unauthenticated {
			return errors.New("the token is accepted")
		}
		return nil
	})
	if _, err := k.Authenticate(request(t, "not a token")); fault.CodeOf(err) != fault.Unauthenticated {
		t.Errorf("a malformed token: %v, want Unauthenticated", err)
	}

	// A service accepts no client if Keystone rejects its password, or if its user may not validate tokens.
	for user, password := range map[string]string{"volume": "wrong", "plain": keystonetest.Password} {
		if got, err := service(user, password, nil).Authenticate(request(t, kept)); fault.CodeOf(err) != fault.Unavailable {
			t.Errorf("service %s: %+v, %v; want Unavailable", user, got, err)
		}
	}

	long := service("volume", keystonetest.Password, func(c *auth.KeystoneConfig) { c.TTL = time.Hour })
	fresh := ks.Token("ada", &inProject)
	if _, err := long.Authenticate(request(t, kept)); err != nil {
		t.Error(err)
	}
	ks.Kill()
	if _, err := long.Authenticate(request(t, kept)); err != nil {
		t.Errorf("a cached token while Keystone is dead: %v", err)
	}
	if _, err := long.Authenticate(request(t, fresh)); fault.CodeOf(err) != fault.Unavailable {
		t.Errorf("another token while Keystone is dead: %v, want Unavailable", err)
	}
	if err := long.Check(t.Context()); fault.CodeOf(err) != fault.Unavailable {
		t.Errorf("Check while Keystone is dead: %v, want Unavailable", err)
	}
	if err := ks.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := long.Check(t.Context()); err != nil {
		t.Errorf("Check after Keystone is back: %v", err)
	}
	if _, err := long.Authenticate(request(t, fresh)); err != nil {
		t.Errorf("a token after Keystone is back: %v", err)
	}
}

// TestOutageLog: an outage of Keystone logs one ERROR, and one INFO at its end, for any number of requests.
func TestOutageLog(t *testing.T) {
	t.Parallel()
	f := newKeystone(t)
	var out bytes.Buffer
	k := open(t, f, func(c *auth.KeystoneConfig) {
		c.Logger = slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))
	})
	for outage := range 2 {
		out.Reset()
		for i := range 14 {
			status, want := http.StatusInternalServerError, fault.Unavailable
			if i >= 10 { // the outage has ended
				status, want = 0, fault.Unauthenticated
			}
			f.set(func() { f.status = status })
			if _, err := k.Authenticate(request(t, fmt.Sprintf("token-%d-%d", outage, i))); fault.CodeOf(err) != want {
				t.Errorf("request %d: %v, want %v", i, err, want)
			}
		}
		for level, want := range map[string]int{"level=ERROR": 1, "level=DEBUG": 9, "level=INFO": 1} {
			if n := strings.Count(out.String(), level); n != want {
				t.Errorf("%d lines with %s, want %d:\n%s", n, level, want, out.String())
			}
		}
	}
}

// TestKeystoneTLS: Keystone's certificate is verified with the configured authority. A TLS configuration
// without effect, and a parameter in the URL, are errors. No error contains the password.
func TestKeystoneTLS(t *testing.T) {
	t.Parallel()
	ca := certtest.New(t)
	certFile, keyFile := ca.Issue(t, "localhost")
	pair, err := tlsfile.Pair(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	clients, err := tlsfile.Pool(ca.File)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Subject-Token", "own")
		w.WriteHeader(http.StatusCreated)
	}))
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: clients, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12}
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	port := srv.URL[strings.LastIndex(srv.URL, ":"):]
	mine := tlsfile.Client{CAFile: ca.File, CertFile: certFile, KeyFile: keyFile}
	for _, tt := range []struct {
		name, url string
		files     *tlsfile.Client
		want      string // a part of the error; empty: no error
	}{
		{"right", "https://localhost" + port, &mine, ""},
		{"no files", "https://localhost" + port, nil, "x509"},
		{"wrong authority", "https://localhost" + port, &tlsfile.Client{CAFile: certtest.New(t).File, CertFile: certFile, KeyFile: keyFile}, "x509"},
		{"wrong name", "https://127.0.0.1" + port, &mine, "127.0.0.1"},
		{"no certificate", "https://localhost" + port, &tlsfile.Client{CAFile: ca.File}, "certificate required"},
		{"without effect", "http://localhost" + port, &mine, "http://"},
		{"a parameter", "https://localhost" + port + "/v3?insecure=1", &mine, "insecure"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cfg := auth.KeystoneConfig{URL: tt.url, Username: "u", Password: "hunter2", ProjectName: "p", Logger: slog.New(slog.DiscardHandler)}
			if tt.files != nil {
				secure, err := tt.files.Config()
				if err != nil {
					t.Fatal(err)
				}
				cfg.TLS = secure
			}
			k, err := auth.NewKeystone(cfg)
			if err == nil {
				err = errors.Join(k.Check(t.Context()), k.Stop(t.Context()))
			}
			if tt.want == "" && err != nil || !strings.Contains(fmt.Sprint(err), tt.want) || strings.Contains(fmt.Sprint(err), "hunter2") {
				t.Errorf("error %v, want %q and no password", err, tt.want)
			}
		})
	}
}
