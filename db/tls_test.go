package db_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/certtest"
	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/testenv"
)

// TestTLS: if a MySQL URL requires TLS, the connection has TLS with a verified server, or Open fails with the
// reason.
func TestTLS(t *testing.T) {
	t.Parallel()
	ca := certtest.New(t)
	other := certtest.New(t).File
	server, secret := ca.Issue(t, "localhost", "db.example")
	cert, key := ca.Issue(t, "client")
	s := envtest.MariaDB(t, "--ssl-ca="+ca.File, "--ssl-cert="+server, "--ssl-key="+secret)
	admin, err := db.Open(t.Context(), db.Config{URL: s.URL + "mysql"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { admin.Close() })
	admin.MustExecContext(t.Context(), "CREATE USER known@'127.0.0.1' IDENTIFIED BY 'hunter2' REQUIRE X509")
	admin.MustExecContext(t.Context(), "GRANT SELECT ON mysql.* TO known@'127.0.0.1'")
	u, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	u.Path, u.Host = "/mysql", fmt.Sprintf("localhost:%d", s.Port)
	known := url.UserPassword("known", "hunter2")
	plain := envtest.URL(t, testenv.MySQLVar)
	for _, tt := range []struct {
		name, host, query string
		user              *url.Userinfo
		want              fault.Code
		text              string
	}{
		{name: "right authority", query: "ssl_ca=" + ca.File},
		{name: "verify by SQLAlchemy's name", query: "ssl_ca=" + ca.File + "&ssl_check_hostname=true"},
		{name: "unknown authority", query: "tls=true", want: fault.Denied, text: "x509"},
		{name: "wrong authority", query: "ssl_ca=" + other, want: fault.Denied, text: "x509"},
		{name: "wrong name", host: "127.0.0.1", query: "ssl_ca=" + ca.File, want: fault.Denied, text: "127.0.0.1"},
		{name: "another name", host: "127.0.0.1", query: "ssl_server_name=db.example&ssl_ca=" + ca.File},
		{name: "any name", host: "127.0.0.1", query: "ssl_verify_identity=false&ssl_ca=" + ca.File},
		{name: "any name, wrong authority", host: "127.0.0.1", query: "ssl_check_hostname=false&ssl_ca=" + other, want: fault.Denied, text: "x509"},
		{name: "unverified", query: "tls=skip-verify"},
		{name: "required client certificate", user: known, query: "ssl_ca=" + ca.File + "&ssl_cert=" + cert + "&ssl_key=" + key},
		{name: "no client certificate", user: known, query: "ssl_ca=" + ca.File, want: fault.Unauthenticated, text: "Access denied"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			to := *u
			if tt.host != "" {
				to.Host = fmt.Sprintf("%s:%d", tt.host, s.Port)
			}
			if tt.user != nil {
				to.User = tt.user
			}
			to.RawQuery = tt.query
			d, err := db.Open(t.Context(), db.Config{URL: to.String()})
			if fault.CodeOf(err) != tt.want || !strings.Contains(fmt.Sprint(err), tt.text) || strings.Contains(fmt.Sprint(err), "hunter2") {
				t.Errorf("%v (%v), want %v with %q", err, fault.CodeOf(err), tt.want, tt.text)
			}
			if err != nil {
				return
			}
			defer d.Close()
			var name, cipher string
			if err := d.QueryRowxContext(t.Context(), "SHOW STATUS LIKE 'Ssl_cipher'").Scan(&name, &cipher); err != nil || cipher == "" {
				t.Errorf("the connection does not have TLS: cipher %q, %v", cipher, err)
			}
		})
	}
	t.Run("a server without TLS", func(t *testing.T) {
		t.Parallel()
		if _, err := db.Open(t.Context(), db.Config{URL: plain + "mysql?tls=true"}); fault.CodeOf(err) != fault.Precondition || !strings.Contains(err.Error(), "TLS") {
			t.Errorf("%v, want Precondition", err)
		}
	})
}

// TestTLSOptions: an option of a MySQL URL that is unknown or has no effect is an error with the option's name. An
// option that allows connections without TLS is also an error.
func TestTLSOptions(t *testing.T) {
	t.Parallel()
	cert, key := certtest.New(t).Issue(t, "client")
	open := filepath.Join(t.TempDir(), "open.key")
	raw, err := os.ReadFile(key)
	if err == nil {
		err = os.WriteFile(open, raw, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	for query, text := range map[string]string{
		"tsl=true":                                "tsl",
		"innodb_lock_wait_timeout=5":              "innodb_lock_wait_timeout",
		"tls=preferred":                           "tls",
		"allowFallbackToPlaintext=true":           "allowFallbackToPlaintext",
		"tls=false&ssl_ca=/x":                     "tls",
		"tls=skip-verify&ssl_ca=/x":               "tls",
		"tls=skip-verify&ssl_verify_identity=1":   "ssl_verify_identity",
		"tls=skip-verify&ssl_check_hostname=true": "ssl_check_hostname",
		"ssl_check_hostname=true":                 "ssl_check_hostname",
		"tls=true&ssl_verify_identity=perh":       "ssl_verify_identity",
		"ssl_capath=/x":                           "ssl_capath",
		"ssl_ca=/nonexistent":                     "/nonexistent",
		"ssl_cert=" + cert:                        cert,
		"ssl_cert=" + cert + "&ssl_key=" + open:   open,
	} {
		_, err := db.New(db.Config{URL: "mysql://u:hunter2@h/n?" + query})
		if c := fault.CodeOf(err); c != fault.Invalid && c != fault.Denied || !strings.Contains(err.Error(), text) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v, want an error with %q", query, err, text)
		}
	}
	if _, err := db.New(db.Config{URL: "sqlite:///x.db?tls=true"}); fault.CodeOf(err) != fault.Invalid {
		t.Errorf("SQLite with an option: %v, want Invalid", err)
	}
}

// TestValidateLogsNothing: options are checked several times, and before the log has its format. So only the handle logs the warning about TLS.
func TestValidateLogsNothing(t *testing.T) { //nolint:paralleltest // it sets the default logger
	var out bytes.Buffer
	old := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(&out, nil)))
	defer slog.SetDefault(old)
	if err := (&db.Options{Connection: "mysql://u:hunter2@db.example/n", MaxPoolSize: 1}).Validate(); err != nil {
		t.Error(err)
	}
	if out.Len() > 0 {
		t.Errorf("Validate has logged: %s", &out)
	}
}

// TestPlainWarning: a connection to another machine without TLS logs one warning with the host.
func TestPlainWarning(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]int{
		"mysql://u:hunter2@db.example/n":          1,
		"mysql://u:hunter2@192.0.2.1/n":           1,
		"mysql://u:hunter2@db.example/n?tls=true": 0,
		"mysql://u:hunter2@127.0.0.1/n":           0,
		"mysql://u:hunter2@[::1]/n":               0,
		"mysql://u:hunter2@localhost/n":           0,
	} {
		var out bytes.Buffer
		d, err := db.New(db.Config{URL: raw, Logger: slog.New(slog.NewTextHandler(&out, nil))})
		if err != nil {
			t.Fatal(err)
		}
		_ = d.Close()
		if n := strings.Count(out.String(), "level=WARN"); n != want || strings.Contains(out.String(), "hunter2") || want > 0 && !strings.Contains(out.String(), "host=") {
			t.Errorf("%s: %d warnings, want %d: %s", raw, n, want, out.String())
		}
	}
}
