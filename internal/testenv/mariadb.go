package testenv

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"

	"github.com/go-sql-driver/mysql"
)

// MariaDB starts a server. The server keeps its files in dir, which must exist. The caller
// removes dir. MariaDB returns when the server answers, or with an error after 120 s.
// The user in the URL has all privileges. The server has only system databases. Its
// output goes to log, and each error has the last lines of this output. MariaDB fails with
// [ErrMissing] if the server is not installed.
func MariaDB(ctx context.Context, dir string, log io.Writer) (*Service, error) {
	return MariaDBWith(ctx, dir, log)
}

// MariaDBWith starts a server as [MariaDB] does, with more arguments, such as "--ssl-cert=FILE".
func MariaDBWith(ctx context.Context, dir string, log io.Writer, args ...string) (*Service, error) {
	server, err := findMariaDB()
	if err != nil {
		return nil, err
	}
	install, err := findInstallDB()
	if err != nil {
		return nil, err
	}
	dir, err = filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	out := &tail{next: log}
	data, tmp := filepath.Join(dir, "data"), filepath.Join(dir, "tmp")
	if err := os.MkdirAll(tmp, 0o700); err != nil {
		return nil, err
	}
	user := []string{}
	if os.Geteuid() == 0 {
		user = append(user, "--user=root") // without it the server refuses to run as root
	}
	cmd := exec.Command(install, append([]string{ //nolint:noctx // awaited below
		"--no-defaults", "--datadir=" + data, "--tmpdir=" + tmp, "--skip-test-db",
		"--auth-root-authentication-method=normal",
	}, user...)...)
	cmd.Dir = dir
	if err := runOnce(ctx, cmd, out, "install MariaDB's tables in "+data); err != nil {
		return nil, err
	}
	return startOnFreePort(ctx, func() (*Service, error) { return newMariaDB(dir, server, append(user, args...), out) })
}

func newMariaDB(dir, server string, user []string, out *tail) (*Service, error) {
	port, err := FreePort()
	if err != nil {
		return nil, err
	}
	password := rand.Text()
	initFile := filepath.Join(dir, "init.sql")
	grant := "CREATE OR REPLACE USER armature@'127.0.0.1' IDENTIFIED BY '" + password + "';\n" +
		"GRANT ALL PRIVILEGES ON *.* TO armature@'127.0.0.1' WITH GRANT OPTION;\n"
	if err := os.WriteFile(initFile, []byte(grant), 0o600); err != nil {
		return nil, err
	}
	s := &Service{Name: "MariaDB", Port: port, out: out}
	cfg := mysql.NewConfig()
	cfg.User, cfg.Passwd = "armature", password
	cfg.Net, cfg.Addr = "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	cfg.Logger = new(mysql.NopLogger)
	s.URL = (&url.URL{Scheme: "mysql", User: url.UserPassword(cfg.User, password), Host: cfg.Addr, Path: "/"}).String()
	args := append([]string{
		"--no-defaults",
		"--datadir=" + filepath.Join(dir, "data"),
		"--tmpdir=" + filepath.Join(dir, "tmp"),
		"--pid-file=" + filepath.Join(dir, "pid"),
		// A relative path, so that a long data directory does not exceed the limit
		// of socket paths.
		"--socket=sock",
		"--bind-address=127.0.0.1",
		"--port=" + strconv.Itoa(port),
		"--init-file=" + initFile,
		"--skip-name-resolve",
		"--max-connections=500",
		"--character-set-server=utf8mb4",
	}, user...)
	s.launch = func() (*exec.Cmd, error) {
		cmd := exec.Command(server, args...) //nolint:noctx // it runs until Stop
		cmd.Dir = dir
		return cmd, nil
	}
	s.probe = func(ctx context.Context) (v string, err error) {
		c, err := mysql.NewConnector(cfg)
		if err != nil {
			return "", err
		}
		d := sql.OpenDB(c)
		defer func() { err = errors.Join(err, d.Close()) }()
		err = d.QueryRowContext(ctx, "SELECT VERSION()").Scan(&v)
		return v, err
	}
	return s, nil
}

// CreateDatabase creates an empty database on a server that [MariaDB] has started. The name has only letters, digits and _. The URL of the
// database is s.URL with the name at its end.
func CreateDatabase(ctx context.Context, s *Service, name string) (err error) {
	u, err := url.Parse(s.URL)
	if err != nil {
		return err
	}
	cfg := mysql.NewConfig()
	cfg.User = u.User.Username()
	cfg.Passwd, _ = u.User.Password()
	cfg.Net, cfg.Addr = "tcp", u.Host
	c, err := mysql.NewConnector(cfg)
	if err != nil {
		return err
	}
	d := sql.OpenDB(c)
	defer func() { err = errors.Join(err, d.Close()) }()
	if _, err := d.ExecContext(ctx, "CREATE DATABASE "+name); err != nil {
		return fmt.Errorf("create the database %s: %w", name, err)
	}
	return nil
}
