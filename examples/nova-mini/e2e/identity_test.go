package e2e_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// keystone answers as Keystone does, for tokens of the form USER.PROJECT.ROLE.
func keystone(t *testing.T, away *atomic.Bool) string {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		parts := strings.Split(r.Header.Get("X-Subject-Token"), ".")
		switch {
		case away.Load():
			w.WriteHeader(http.StatusServiceUnavailable)
		case r.Method == http.MethodPost:
			w.Header().Set("X-Subject-Token", "own")
			w.WriteHeader(http.StatusCreated)
		case r.Header.Get("X-Auth-Token") != "own":
			w.WriteHeader(http.StatusUnauthorized)
		case len(parts) != 3:
			w.WriteHeader(http.StatusNotFound)
		default:
			roles := []any{map[string]string{"name": parts[2]}}
			if parts[2] == "member" { // which implies it, as in a real one
				roles = append(roles, map[string]string{"name": "reader"})
			}
			_ = json.NewEncoder(w).Encode(map[string]any{"token": map[string]any{
				"expires_at": time.Now().Add(time.Hour).UTC().Format(time.RFC3339), "user": map[string]string{"id": parts[0]},
				"project": map[string]string{"id": parts[1]}, "roles": roles,
			}})
		}
	}))
	t.Cleanup(srv.Close)
	return srv.URL + "/v3"
}

// TestIdentity: who may see and do what, by Keystone's word and the policy, which an
// operator changes while the service runs; nobody new is let in while Keystone is away.
func TestIdentity(t *testing.T) {
	t.Parallel()
	var away atomic.Bool
	c := newCloud(t, "[api]\nauth_strategy = keystone\n[keystone_authtoken]\nauth_url = "+keystone(t, &away)+"\nusername = nova\npassword = pw\n")
	for _, p := range [][2]string{{"conductor", "c-1"}, {"scheduler", "s-1"}, {"compute", "node-1"}} {
		c.start(p[0], p[1])
	}
	cl := c.client(c.start("api", "api-1"))
	ask := func(token, method, path, body string) (int, string, http.Header) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, cl.Endpoint+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X-Auth-Token", token)
		r.Header.Set("Content-Type", "application/json")
		res, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		raw, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(raw), res.Header
	}
	c.poll("the compute service to be known", 30*time.Second, func() error {
		if _, body, _ := ask("root.p0.admin", "GET", "os-services", ""); !strings.Contains(body, "nova-compute") {
			return errors.New(body)
		}
		return nil
	})
	const boot = `{"server": {"name": "s", "flavorRef": "1", "imageRef": "cirros"}}`
	ids := map[string]string{}
	for _, token := range []string{"ada.p1.member", "bob.p2.member"} {
		code, body, _ := ask(token, "POST", "servers", boot)
		var made struct{ Server struct{ ID string } }
		if err := json.Unmarshal([]byte(body), &made); code != 202 || err != nil {
			t.Fatalf("%s: %d %s", token, code, body)
		}
		ids[token] = made.Server.ID
	}
	ada, bob := ids["ada.p1.member"], ids["bob.p2.member"]
	const flavor = `{"flavor": {"name": "f", "ram": 1, "vcpus": 1, "disk": 1}}`
	for _, tt := range []struct {
		token, method, path, body string
		code                      int
		says                      string
	}{
		{"", "GET", "servers", "", 401, "The request you have made requires authentication."},
		{"unknown", "GET", "servers", "", 401, "requires authentication"},
		{"", "GET", "", "", 200, "CURRENT"},
		{"ada.p1.reader", "GET", "servers", "", 200, ada},
		{"ada.p1.reader", "POST", "servers", boot, 403, "Policy doesn't allow os_compute_api:servers:create to be performed."},
		{"ada.p1.reader", "GET", "servers/" + ada, "", 200, ada},
		{"ada.p1.reader", "DELETE", "servers/" + ada, "", 403, "Policy doesn't allow os_compute_api:servers:delete to be performed."},
		{"ada.p1.reader", "POST", "servers/" + ada + "/action", `{"os-stop": null}`, 403, "servers:stop"},
		{"ada.p1.member", "GET", "servers/" + bob, "", 404, "Instance " + bob + " could not be found."},
		{"ada.p1.member", "DELETE", "servers/" + bob, "", 404, "could not be found"},
		{"ada.p1.member", "POST", "servers/" + bob + "/action", `{"os-stop": null}`, 404, "could not be found"},
		{"ada.p1.member", "GET", "servers?all_tenants=1", "", 403, "get_all_tenants"},
		{"ada.p1.member", "GET", "os-services", "", 403, "os-services:list"},
		{"ada.p1.member", "POST", "flavors", flavor, 403, "os-flavor-manage:create"},
		{"root.p0.admin", "GET", "servers/" + bob, "", 200, bob},
		{"root.p0.admin", "GET", "servers?all_tenants=True", "", 200, ada},
		{"root.p0.admin", "GET", "os-services", "", 200, "nova-compute"},
		{"root.p0.admin", "POST", "flavors", flavor, 200, `"name":"f"`},
	} {
		if code, body, _ := ask(tt.token, tt.method, tt.path, tt.body); code != tt.code || !strings.Contains(body, tt.says) {
			t.Errorf("%s: %s %s = %d %s, want %d with %s", tt.token, tt.method, tt.path, code, body, tt.code, tt.says)
		}
	}
	for token, other := range map[string]string{"ada.p1.reader": bob, "root.p0.admin": ada} {
		if _, body, _ := ask(token, "GET", "servers", ""); strings.Contains(body, other) {
			t.Errorf("%s sees servers of others: %s", token, body)
		}
	}

	// The operator lets readers boot servers.
	if err := os.WriteFile(filepath.Join(c.dir, "policy.yaml"), []byte("os_compute_api:servers:create: 'role:reader'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.poll("the policy to change", 30*time.Second, func() error {
		if code, body, _ := ask("ada.p1.reader", "POST", "servers", boot); code != 202 {
			return fmt.Errorf("%d %s", code, body)
		}
		return nil
	})

	away.Store(true)
	if code, body, h := ask("new.p1.member", "GET", "servers", ""); code != 503 || h.Get("Retry-After") == "" {
		t.Errorf("while Keystone is away: %d %s", code, body)
	}
	if code, body, _ := ask("ada.p1.reader", "GET", "servers", ""); code != 200 {
		t.Errorf("a token that is remembered: %d %s", code, body)
	}
}
