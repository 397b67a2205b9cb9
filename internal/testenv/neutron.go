package testenv

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
)

// Neutron starts a network service that authenticates its clients with a Keystone. The parameter keystone is as for [Glance]. A port can be bound on each of the
// hosts, because Neutron's database says that an agent of Open vSwitch runs there. No agent runs, so no packet is sent, and ports stay DOWN. The
// service keeps its database in dir, which must exist and which the caller removes. Service.URL has no name and no
// password. The start needs about 10 s of processor time. The errors are those of [NATS].
func Neutron(ctx context.Context, dir, keystone string, hosts []string, log io.Writer) (*Service, error) {
	if _, err := findNeutron(); err != nil {
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
		s, err := newNeutron(dir, login, &tail{next: log})
		if err != nil {
			return nil, err
		}
		return s, s.createNetworks(ctx, dir, hosts)
	})
}

// The package of the library is enough, as for Glance.
const neutronPackage = "python3-neutron"

func findNeutron() (string, error) {
	return findProgram(neutronPackage, "/usr/lib/python3/dist-packages/neutron/server/__init__.py")
}

// neutronTables creates the tables of Neutron in a new SQLite database. Neutron's own migrations need MySQL or PostgreSQL.
const neutronTables = `import sys
import sqlalchemy
from neutron.db.migration.models import head
engine = sqlalchemy.create_engine('sqlite:///' + sys.argv[1])
head.get_metadata().create_all(engine)
`

// createNetworks creates Neutron's database with an agent on each host, unless an earlier attempt has done so.
func (s *Service) createNetworks(ctx context.Context, dir string, hosts []string) error {
	database := filepath.Join(dir, "neutron.db")
	if _, err := os.Stat(database); err == nil {
		return nil
	}
	cmd := exec.Command(systemPython, "-c", neutronTables, database) //nolint:noctx // awaited below
	cmd.Dir = dir
	if err := runOnce(ctx, cmd, s.out, "create Neutron's database"); err != nil {
		return err
	}
	return errors.Join(enableWAL(ctx, database), addAgents(ctx, database, hosts))
}

// agentID returns an id in the form that Neutron wants.
func agentID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // does not fail
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// addAgents adds an agent for each host. The last heartbeat of an agent is in the year 2099, so that Neutron takes the
// agent for alive.
func addAgents(ctx context.Context, path string, hosts []string) (err error) {
	d, err := sql.Open("sqlite", path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	for _, host := range hosts {
		_, err := d.ExecContext(ctx, `INSERT INTO agents (id, agent_type, binary, topic, host, admin_state_up, created_at, started_at, heartbeat_timestamp, configurations, load)
			VALUES (?, 'Open vSwitch agent', 'neutron-openvswitch-agent', 'N/A', ?, 1, '2026-01-01 00:00:00.000000', '2026-01-01 00:00:00.000000', '2099-01-01 00:00:00.000000', ?, 0)`,
			agentID(), host, `{"bridge_mappings": {}, "tunnel_types": []}`)
		if err != nil {
			return err
		}
	}
	return nil
}

// neutronPaste says which parts of Neutron handle a request.
const neutronPaste = `[composite:neutron]
use = egg:Paste#urlmap
/: versions
/v2.0: api
[composite:api]
use = call:neutron.auth:pipeline_factory
keystone = request_id catch_errors authtoken context extensions app
[filter:request_id]
paste.filter_factory = oslo_middleware:RequestId.factory
[filter:catch_errors]
paste.filter_factory = oslo_middleware:CatchErrors.factory
[filter:authtoken]
paste.filter_factory = keystonemiddleware.auth_token:filter_factory
[filter:context]
paste.filter_factory = neutron.auth:NeutronKeystoneContext.factory
[filter:extensions]
paste.filter_factory = neutron.api.extensions:plugin_aware_extension_middleware_factory
[app:versions]
paste.app_factory = neutron.pecan_wsgi.app:versions_factory
[app:app]
paste.app_factory = neutron.api.v2.router:APIRouter.factory
`

// neutronConf is the template of neutron.conf. Its parameters are those of glanceConf.
const neutronConf = `[DEFAULT]
core_plugin = ml2
service_plugins =
auth_strategy = keystone
bind_host = 127.0.0.1
bind_port = %[2]d
transport_url = fake://
state_path = %[1]s
api_paste_config = %[1]s/paste.ini
api_workers = 0
rpc_workers = 0
rpc_state_report_workers = 0
dhcp_agent_notification = false
use_stderr = true
[oslo_concurrency]
lock_path = %[1]s/lock
[database]
connection = sqlite:///%[1]s/neutron.db
[ml2]
type_drivers = local
tenant_network_types = local
mechanism_drivers = openvswitch
extension_drivers = port_security
`

func newNeutron(dir string, login *url.URL, out *tail) (*Service, error) {
	s, err := newOpenStackService(dir, login, out, "neutron.conf", neutronConf, neutronPaste)
	if err != nil {
		return nil, err
	}
	s.Name = "Neutron"
	s.launch = func() (*exec.Cmd, error) {
		code := "import sys; from neutron.cmd.eventlet.server import main; sys.argv[0] = 'neutron-server'; sys.exit(main())"
		cmd := exec.Command(systemPython, "-c", code, "--config-file", filepath.Join(dir, "neutron.conf")) //nolint:noctx // it runs until Stop
		cmd.Dir = dir
		return cmd, nil
	}
	s.probe = s.versionsAt("/")
	return s, nil
}
