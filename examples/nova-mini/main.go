// Command nova-mini is a cloud's compute component. It implements a part of the Nova v2.1 REST API, and is the reference
// component of Armature's packages.
//
//	nova-mini                                         run all services in one process; needs no other software
//	nova-mini db sync --config-file nova.conf         create or upgrade the tables of the database
//	nova-mini upgrade check --config-file nova.conf   check whether the services can start: exit code 0, 1 or 2
//	nova-mini api|conductor|scheduler|compute|consoleproxy --config-file nova.conf   run one service
//	nova-mini placement audit [--repair] --config-file nova.conf   find claims that differ from the servers
//	nova-mini operation list|show|cancel|retry --config-file nova.conf   manage the operations on servers
//	nova-mini member list|remove --config-file nova.conf   list the services; remove one whose process no longer exists
//	nova-mini status --config-file nova.conf          services and open operations
//	nova-mini config sample|validate                  print all options; check a configuration
//	nova-mini policy sample|validate|list|explain     print all rules; check rules; show why a rule denies
//	nova-mini openapi [--version 2.1]                 print the OpenAPI 3.1 document of the REST API
//	nova-mini openapi --history                       print what each microversion changes
//	nova-mini dlq list|show|requeue|drop --config-file nova.conf   manage messages that no service could handle
//
// The services share a RabbitMQ or a NATS server (transport_url) and a MySQL or MariaDB server ([database] connection).
// Any number of processes of each service may run, but only one compute service for each host. The commands are those of package
// component; wire.go has what is nova-mini's own.
package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/spf13/cobra"

	"github.com/armature-go/armature/component"
	"github.com/armature-go/armature/examples/nova-mini/api"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/scheduler/placement"
	"github.com/armature-go/armature/service/membership/rpccaps"
	"github.com/armature-go/armature/service/operation"
)

func main() { component.Main(nova()) }

// nova returns the component.
func nova() component.Component[options] {
	return component.Component[options]{
		Name: "nova-mini", Short: "Services that implement a part of the Nova v2.1 API", Resource: "server",
		Defaults: map[string]string{"control_exchange": "nova"}, DatabaseFile: "nova.db",
		Flags: []component.Flag{{Name: "port", Option: "osapi_compute_listen_port", Help: "port of the API; 0: any free port (option osapi_compute_listen_port)"}},
		Services: []component.Service[options]{
			{Name: "conductor", Short: "Run the conductor service, which runs the operations on servers", Wire: wireConductor},
			{Name: "scheduler", Short: "Run the scheduler service, which chooses hosts", Wire: wireScheduler},
			{Name: "compute", Short: "Run the compute service, which builds servers on this host", Wire: wireCompute, NoDatabase: true, AutoCaps: rpccaps.Ask(compute.VersionCaps, compute.Unreported)},
			{Name: "consoleproxy", Short: "Run the console proxy, which connects browsers to the consoles of servers", Wire: wireConsoleProxy},
			{Name: "api", Short: "Run the API service", Wire: wireAPI},
		},
		Migrations: store.Migrations(), Rules: api.Rules(),
		Interfaces: []*rpc.Interface{compute.Worker, compute.Conductor, compute.Scheduler}, Unreported: compute.Unreported,
		Runner:    func(o *options) operation.RunnerConfig { return operation.RunnerConfig{Lease: o.RetryInterval} },
		OwnNotify: true, // compute.Notify
		Address:   (*options).address,
		OpenAPI:   func(version string) (any, error) { return api.OpenAPI(cmp.Or(version, "2.1")) },
		Audit: func(ctx context.Context, d *sqlx.DB, repair bool, minAge time.Duration) ([]placement.Finding, error) {
			return store.New(d).Audit(ctx, repair, minAge)
		},
		Commands: upgradeCommands, Started: greet,
	}
}

// upgradeCommands returns the command "upgrade check", which is "db check" under the name of nova-status.
func upgradeCommands(t *component.Tool[options]) []*cobra.Command {
	upgrade := &cobra.Command{Use: "upgrade", Short: "Check before an upgrade"}
	upgrade.AddCommand(&cobra.Command{
		Use: "check", Args: cobra.NoArgs,
		Short: "Check whether the services of this version can start. Exit codes: 0 = yes; 1 = yes, with warnings; 2 = no",
		RunE:  func(cmd *cobra.Command, _ []string) error { return t.CheckDatabase(cmd.Context()) },
	})
	return []*cobra.Command{upgrade}
}

// greet prints the URL of the API, if the process has one, and commands to try the API.
func greet(p *component.Process[options]) error {
	if p.Addr() == "" {
		return nil
	}
	url := p.Options.Scheme() + "://" + p.Addr()
	curl, hint := "curl -s", "Paste these to create a server, to list all servers, and to show the new one:"
	if p.Options.Authenticated() {
		curl = `curl -s -H "X-Auth-Token: $TOKEN"`
		hint = "With OpenStack's command line set up for your Keystone, paste these to get a token, to create a server, to list all servers, and to show the new one:\n\n" +
			"  TOKEN=$(openstack token issue -f value -c id)"
	}
	text := fmt.Sprintf(`nova-mini listens on %[1]s

%[3]s

  ID=$(%[2]s %[1]s/v2.1/servers -H 'Content-Type: application/json' -d '{"server": {"name": "demo", "flavorRef": "1", "imageRef": "cirros"}}' | sed 's/.*"id":"\([^"]*\)".*/\1/'); echo "$ID"
  %[2]s %[1]s/v2.1/servers/detail
  %[2]s "%[1]s/v2.1/servers/$ID"

`, url, curl, hint)
	if !p.Options.Authenticated() {
		text += fmt.Sprintf(`The same with OpenStack's own command, see docs/openstack-client.md:

  export OS_AUTH_TYPE=none OS_ENDPOINT=%s/v2.1 OS_COMPUTE_API_VERSION=2.79
  openstack server create --image cirros --flavor m1.tiny --network none --wait demo

`, url)
	}
	_, err := io.WriteString(p.Out, text)
	return err
}
