package testenv

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
)

// Glance starts an image service that authenticates its clients with a Keystone. The parameter keystone is the URL of
// that Keystone, with the name and the password of a user. The image service logs in as this user to the project
// "service", so the user needs a role in this project, and the role must permit the validation of tokens. The image
// service keeps its database and the images in dir, which must exist and which the caller removes. Service.URL has no
// name and no password. The start needs some seconds of processor time. The errors are those of [NATS].
func Glance(ctx context.Context, dir, keystone string, log io.Writer) (*Service, error) {
	if _, err := findGlance(); err != nil {
		return nil, err
	}
	login, err := url.Parse(keystone)
	if err != nil {
		return nil, err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	return startOnFreePort(ctx, func() (*Service, error) {
		s, err := newGlance(dir, login, &tail{next: log})
		if err != nil {
			return nil, err
		}
		return s, s.createImages(ctx, dir)
	})
}

// glancePackage is Debian's package of Glance's Python library. It is enough, because the programs of the package
// glance-api only call the library. The package glance-api would also install a service that starts with the machine.
const (
	glancePackage = "python3-glance"
	systemPython  = "/usr/bin/python3"
)

func findGlance() (string, error) {
	return findProgram(glancePackage, "/usr/lib/python3/dist-packages/glance/cmd/api.py")
}

// glanceCommand returns the command that runs a program of Glance, such as "api".
func glanceCommand(dir, program string, args ...string) *exec.Cmd {
	code := "import sys; from glance.cmd." + program + " import main; sys.argv[0] = 'glance-" + program + "'; sys.exit(main())"
	cmd := exec.Command(systemPython, append([]string{"-c", code, "--config-file", filepath.Join(dir, "glance.conf")}, args...)...) //nolint:noctx // the callers end it
	cmd.Dir = dir
	return cmd
}

// createImages creates Glance's database, unless an earlier attempt has done so.
func (s *Service) createImages(ctx context.Context, dir string) error {
	database := filepath.Join(dir, "glance.db")
	if _, err := os.Stat(database); err == nil {
		return nil
	}
	cmd := glanceCommand(dir, "manage", "db", "sync")
	if err := runOnce(ctx, cmd, s.out, "create Glance's database"); err != nil {
		return err
	}
	return enableWAL(ctx, database)
}

// glancePaste says which parts of Glance handle a request.
const glancePaste = `[pipeline:glance-api-keystone]
pipeline = versionnegotiation authtoken context rootapp
[composite:rootapp]
paste.composite_factory = glance.api:root_app_factory
/: apiversions
/v2: apiv2app
[app:apiversions]
paste.app_factory = glance.api.versions:create_resource
[app:apiv2app]
paste.app_factory = glance.api.v2.router:API.factory
[filter:versionnegotiation]
paste.filter_factory = glance.api.middleware.version_negotiation:VersionNegotiationFilter.factory
[filter:context]
paste.filter_factory = glance.api.middleware.context:ContextMiddleware.factory
[filter:authtoken]
paste.filter_factory = keystonemiddleware.auth_token:filter_factory
delay_auth_decision = true
`

// glanceConf is the template of glance.conf, without loginConf. Its parameters are the directory and the port. Glance runs as one process (workers = 0), so that Kill ends all of it.
const glanceConf = `[DEFAULT]
bind_host = 127.0.0.1
bind_port = %[2]d
workers = 0
use_stderr = true
enforce_secure_rbac = true
enabled_import_methods = []
node_staging_uri = file://%[1]s/staging
[oslo_policy]
enforce_new_defaults = true
enforce_scope = true
[database]
connection = sqlite:///%[1]s/glance.db
[glance_store]
stores = file
default_store = file
filesystem_store_datadir = %[1]s/images
[paste_deploy]
flavor = keystone
config_file = %[1]s/paste.ini
`

func newGlance(dir string, login *url.URL, out *tail) (*Service, error) {
	s, err := newOpenStackService(dir, login, out, "glance.conf", glanceConf, glancePaste)
	if err != nil {
		return nil, err
	}
	s.Name = "Glance"
	s.launch = func() (*exec.Cmd, error) { return glanceCommand(dir, "api"), nil }
	s.probe = s.versionsAt("/versions")
	return s, nil
}

// loginConf is the template of the section with which a service of OpenStack checks tokens. Its parameters are the URL of Keystone, and the name and the
// password of the service's user.
const loginConf = `[keystone_authtoken]
auth_type = password
interface = public
auth_url = %s
username = %s
password = %s
user_domain_name = Default
project_name = service
project_domain_name = Default
`

// newOpenStackService writes the configuration of a service of OpenStack for a free port. The parameter login is the URL of
// Keystone, with the name and the password of the service's user. The template conf has the parameters of glanceConf.
func newOpenStackService(dir string, login *url.URL, out *tail, file, conf, paste string) (*Service, error) {
	port, err := FreePort()
	if err != nil {
		return nil, err
	}
	at := *login
	at.User = nil
	password, _ := login.User.Password()
	text := fmt.Sprintf(conf, dir, port) + fmt.Sprintf(loginConf, &at, login.User.Username(), password)
	for name, text := range map[string]string{"paste.ini": paste, file: text} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	return &Service{Port: port, URL: "http://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), out: out}, nil
}

// versionsAt returns a probe that reads the list of versions at a path.
func (s *Service) versionsAt(path string) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		var doc struct{ Versions []struct{ ID string } }
		if err := probeJSON(ctx, s.URL+path, &doc); err != nil {
			return "", err
		}
		if len(doc.Versions) == 0 {
			return "", fmt.Errorf("the reply has no version of %s", s.Name)
		}
		return doc.Versions[0].ID, nil
	}
}

// probeJSON reads a JSON document.
func probeJSON(ctx context.Context, from string, to any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, http.NoBody)
	if err != nil {
		return err
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // the body was read
	return json.NewDecoder(io.LimitReader(resp.Body, 1<<16)).Decode(to)
}
