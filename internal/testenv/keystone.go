package testenv

import (
	"bytes"
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"

	_ "modernc.org/sqlite" // the database driver
)

// Keystone starts an identity service. The service keeps its files in dir, which must exist.
// The caller removes dir. The user admin has the role admin in the project admin and in
// the whole system. Tests create users and projects with the API. The start needs about
// 10 s of processor time. The errors are those of [NATS].
func Keystone(ctx context.Context, dir string, log io.Writer) (*Service, error) {
	manage, err := findKeystone()
	if err != nil {
		return nil, err
	}
	server, err := findProgram(keystonePackage, "keystone-wsgi-public")
	if err != nil {
		return nil, err
	}
	dir, err = filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	return startOnFreePort(ctx, func() (*Service, error) {
		s, err := newKeystone(dir, server, &tail{next: log})
		if err != nil {
			return nil, err
		}
		return s, s.bootstrap(ctx, manage, dir)
	})
}

// bootstrap creates Keystone's database, keys and administrator. It replaces those of an earlier
// attempt, because the catalog in the database has the port.
func (s *Service) bootstrap(ctx context.Context, manage, dir string) error {
	database := filepath.Join(dir, "keystone.db")
	if err := errors.Join(os.RemoveAll(database), os.RemoveAll(filepath.Join(dir, "keys")), os.Mkdir(filepath.Join(dir, "keys"), 0o700)); err != nil {
		return err
	}
	admin, _ := url.Parse(s.URL) // newKeystone has built it
	password, _ := admin.User.Password()
	for _, args := range [][]string{
		{"db_sync"},
		{"fernet_setup", "--keystone-user", strconv.Itoa(os.Geteuid()), "--keystone-group", strconv.Itoa(os.Getegid())},
		{"bootstrap", "--bootstrap-password", password, "--bootstrap-public-url", keystoneURL(s.Port), "--bootstrap-region-id", "RegionOne"},
	} {
		cmd := exec.Command(manage, append([]string{"--config-file", filepath.Join(dir, "keystone.conf")}, args...)...) //nolint:noctx // awaited below
		cmd.Dir = dir
		if err := runOnce(ctx, cmd, s.out, "keystone-manage "+args[0]); err != nil {
			return err
		}
	}
	return enableWAL(ctx, database)
}

// runOnce runs a program to its end. The parameter what says what the program does. Errors begin with it, and end with the
// last lines of the output.
func runOnce(ctx context.Context, cmd *exec.Cmd, out *tail, what string) error {
	cmd.Stdout, cmd.Stderr = out, out
	p, err := Start(cmd)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	select {
	case <-p.Done():
	case <-ctx.Done():
		p.Kill()
	}
	if p.ExitCode() != 0 {
		return fmt.Errorf("%s: %w%s", what, p.Err(), out)
	}
	return nil
}

// enableWAL switches a database to write-ahead logging, so that a reading transaction does
// not block writers. Keystone leaves such transactions open, and answers 500 to a request
// that writes in the meantime.
func enableWAL(ctx context.Context, path string) (err error) {
	d, err := sql.Open("sqlite", path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	_, err = d.ExecContext(ctx, "PRAGMA journal_mode = WAL")
	return err
}

// logIn returns an error if the administrator of a Keystone cannot log in: the service is not ready, or another service has taken the port.
func logIn(ctx context.Context, at string) error {
	u, err := url.Parse(at)
	if err != nil {
		return err
	}
	password, _ := u.User.Password()
	name := u.User.Username()
	u.User = nil
	domain := map[string]any{"id": "default"}
	body, err := json.Marshal(map[string]any{"auth": map[string]any{
		"identity": map[string]any{"methods": []string{"password"}, "password": map[string]any{"user": map[string]any{"name": name, "domain": domain, "password": password}}},
		"scope":    map[string]any{"project": map[string]any{"name": "admin", "domain": domain}},
	}})
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String()+"/auth/tokens", bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Close = true
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // only the status is wanted
	if resp.StatusCode != http.StatusCreated {
		return fmt.Errorf("the administrator cannot log in: status %d", resp.StatusCode)
	}
	return nil
}

const keystonePackage = "python3-keystone"

func findKeystone() (string, error) { return findProgram(keystonePackage, "keystone-manage") }

func keystoneURL(port int) string { return "http://127.0.0.1:" + strconv.Itoa(port) + "/v3" }

func newKeystone(dir, server string, out *tail) (*Service, error) {
	port, err := FreePort()
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "keystone.conf")
	conf := fmt.Sprintf("[DEFAULT]\nuse_stderr = true\n[database]\nconnection = sqlite:///%s\n[fernet_tokens]\nkey_repository = %s\n"+
		"[identity]\npassword_hash_rounds = 4\n", filepath.Join(dir, "keystone.db"), filepath.Join(dir, "keys"))
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		return nil, err
	}
	s := &Service{Name: "Keystone", Port: port, out: out}
	s.URL = (&url.URL{
		Scheme: "http", User: url.UserPassword("admin", rand.Text()), Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), Path: "/v3",
	}).String()
	s.launch = func() (*exec.Cmd, error) {
		cmd := exec.Command(server, "--host", "127.0.0.1", "--port", strconv.Itoa(port)) //nolint:noctx // it runs until Stop
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "OS_KEYSTONE_CONFIG_FILES="+file)
		return cmd, nil
	}
	s.probe = func(ctx context.Context) (string, error) {
		var doc struct{ Version struct{ ID string } }
		if err := probeJSON(ctx, keystoneURL(port), &doc); err != nil {
			return "", err
		}
		if doc.Version.ID == "" {
			return "", errors.New("the reply has no version of Keystone")
		}
		return doc.Version.ID, logIn(ctx, s.URL)
	}
	return s, nil
}
