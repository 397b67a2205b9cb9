package main

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/internal/envtest"
)

// serve runs a command until the test ends. It returns the output of the command when the command
// listens. If the command ends before that, serve returns its error.
func serve(t *testing.T, args ...string) (printed string, err error) {
	t.Helper()
	out := &output{more: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- run(ctx, out, args...)
	}()
	stop := func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("%v ended with %v", args, err)
		}
	}
	select {
	case err := <-ended:
		cancel()
		return "", err
	case <-out.more:
		t.Cleanup(stop)
		return out.String(), nil
	case <-time.After(30 * time.Second):
		stop()
		t.Fatalf("%v does not listen", args)
		return "", nil
	}
}

// knowsNoToken returns the URL of a Keystone that accepts the service's login and rejects every client's token.
func knowsNoToken(t *testing.T) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		w.Header().Set("X-Subject-Token", "own")
		w.WriteHeader(http.StatusCreated)
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// status returns the HTTP status of a request without a token.
func status(t *testing.T, printed, path string) int {
	t.Helper()
	url := regexp.MustCompile(`(?m)^nova-mini listens on (\S+)$`).FindStringSubmatch(printed)
	if url == nil {
		t.Fatalf("nova-mini prints %s", printed)
	}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url[1]+path, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	res, err := (&http.Client{Transport: tr}).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	return res.StatusCode
}

// TestWhoIsLetIn: by default a client without a token is refused. Only the process with all services on loopback accepts
// every client by default.
func TestWhoIsLetIn(t *testing.T) { //nolint:paralleltest // the program sets the default logger
	url := knowsNoToken(t)
	keystone := "[keystone_authtoken]\nauth_url = " + url + "/\nusername = nova\npassword = x\n"
	for _, tt := range []struct {
		name, service, text string
		env                 string
		want                int    // the status of a request without a token; 0: the program does not start
		says                string // a part of the error of the start
	}{
		{"no option", "api", "", "", 0, "[keystone_authtoken]"},
		{"no option, all in one process", "", "", "", 200, ""},
		{"keystone in its older place", "api", "[DEFAULT]\nauth_strategy = keystone\n" + keystone, "", 401, ""},
		{"keystone in its older place, lenient", "api", "[DEFAULT]\nstrict = false\nauth_strategy = keystone\n" + keystone, "", 401, ""},
		{"only keystone_authtoken", "api", keystone, "", 401, ""},
		{"only keystone_authtoken, lenient", "api", "[DEFAULT]\nstrict = false\n" + keystone, "", 401, ""},
		{"only keystone_authtoken, all in one process", "", keystone, "", 401, ""},
		{"keystone, all in one process", "", "[api]\nauth_strategy = keystone\n" + keystone, "", 401, ""},
		{"older names in keystone_authtoken, all in one process", "", "[keystone_authtoken]\nidentity_uri = " + url + "/\nadmin_user = nova\nadmin_password = x\n", "", 401, ""},
		{"noauth2", "api", "[api]\nauth_strategy = noauth2\n", "", 200, ""},
		{"noauth2 in its older place", "api", "[DEFAULT]\nauth_strategy = noauth2\n", "", 200, ""},
		{"both places, the newer place counts", "api", "[DEFAULT]\nauth_strategy = noauth2\n[api]\nauth_strategy = keystone\n" + keystone, "", 401, ""},
		{"noauth2 on every address", "api", "[DEFAULT]\nosapi_compute_listen = 0.0.0.0\n[api]\nauth_strategy = noauth2\n", "", 0, "noauth2_remote"},
		{"noauth2 on every address, IPv6", "api", "[DEFAULT]\nosapi_compute_listen = ::\n[api]\nauth_strategy = noauth2\n", "", 0, "noauth2_remote"},
		{"the default on every address, all in one process", "", "[DEFAULT]\nosapi_compute_listen = 0.0.0.0\n", "", 0, "noauth2_remote"},
		{"noauth2 on every address, allowed", "", "[DEFAULT]\nosapi_compute_listen = 0.0.0.0\n[api]\nnoauth2_remote = true\n", "", 200, ""},
		{"IPv6 in brackets", "", "[DEFAULT]\nosapi_compute_listen = [::1]\n", "", 200, ""},
		{"misspelled, lenient", "", "[DEFAULT]\nstrict = false\n[api]\nauth_strategi = keystone\n", "", 0, "auth_strategi"},
		{"misspelled in the environment, lenient", "", "[DEFAULT]\nstrict = false\n", "OS_API__AUTH_STRATEGI=keystone", 0, "OS_API__AUTH_STRATEGI"},
		{"in the environment", "api", keystone, "OS_API__AUTH_STRATEGY=noauth2", 200, ""},
		{"another strategy", "api", "[api]\nauth_strategy = noauth\n", "", 0, "not one of keystone, token, noauth2"},
		{"a policy file that does not exist", "", "[oslo_policy]\npolicy_file = missing.yaml\n", "", 0, "missing.yaml does not exist"},
		{"a policy file that does not exist, its older place", "", "[DEFAULT]\npolicy_file = missing.yaml\n", "", 0, "missing.yaml does not exist"},
		{"policy directories that do not exist", "", "[oslo_policy]\npolicy_dirs = missing.d\n", "", 0, "missing.d does not exist"},
		{"misspelled policy file, lenient", "", "[DEFAULT]\nstrict = false\n[oslo_policy]\npolicy_fil = policy.yaml\n", "", 0, "policy_fil"},
		{"an admin listener on every address", "", "[DEFAULT]\nadmin_listen = 0.0.0.0:0\n", "", 0, "admin_listen"},
		{"an admin listener on every address, allowed", "", "[DEFAULT]\nadmin_listen = 0.0.0.0:0\nadmin_hosts = node1\n", "", 200, ""},
	} {
		t.Run(strings.ReplaceAll(tt.name, " ", "_"), func(t *testing.T) {
			if name, value, ok := strings.Cut(tt.env, "="); ok {
				t.Setenv(name, value)
			}
			dir := t.TempDir()
			conf := filepath.Join(dir, "nova.conf")
			if err := os.WriteFile(conf, []byte(tt.text), 0o600); err != nil {
				t.Fatal(err)
			}
			args := []string{"--config-file", conf, "--port", "0", "--state-path", dir}
			if tt.service != "" {
				url := dbtest.SQLite(t)
				d, err := db.Open(t.Context(), db.Config{URL: url})
				if err != nil {
					t.Fatal(err)
				}
				if err := db.Migrate(t.Context(), d, store.Migrations()...); err != nil {
					t.Fatal(err)
				}
				_ = d.Close()
				t.Setenv("OS_DEFAULT__TRANSPORT_URL", envtest.NATS(t).URL)
				t.Setenv("OS_DATABASE__CONNECTION", url)
				args = append([]string{tt.service}, args...)
			}
			printed, err := serve(t, args...)
			if tt.want == 0 {
				if err == nil || !strings.Contains(fmt.Sprint(err), tt.says) {
					t.Errorf("nova-mini starts: %v, want %s", err, tt.says)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := status(t, printed, "/v2.1/servers"); got != tt.want {
				t.Errorf("without a token: %d, want %d", got, tt.want)
			}
			if strings.Contains(printed, "X-Auth-Token") != (tt.want == 401) {
				t.Errorf("the printed commands do not fit the authentication:\n%s", printed)
			}
		})
	}
}
