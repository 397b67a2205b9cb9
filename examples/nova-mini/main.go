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
//	nova-mini openapi --history                       print what each microversion changes, and where
//	nova-mini dlq list|show|requeue|drop --config-file nova.conf   manage messages that no service could handle
//
// A process with all services that was started with --state-path DIR has its database in DIR. The commands for operators work with this
// database if they have the same --state-path instead of --config-file.
//
// The services share a RabbitMQ or a NATS server (transport_url) and a MySQL or MariaDB server ([database] connection).
// Any number of processes of each service may run, but only one compute service for each host. Package component implements the
// commands; wire.go adds nova-mini's own parts to the services.
package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"regexp"
	"slices"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/spf13/cobra"

	"github.com/armature-go/armature/component"
	"github.com/armature-go/armature/examples/nova-mini/api"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/image"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/scheduler/placement"
	"github.com/armature-go/armature/service/membership/rpccaps"
	"github.com/armature-go/armature/service/operation"
)

func main() { component.Main(novaComponent()) }

// novaComponent returns the component.
func novaComponent() component.Component[options] {
	return component.Component[options]{
		Name: "nova-mini", Short: "Services that implement a part of the Nova v2.1 API", Resource: "server",
		Defaults: map[string]string{"control_exchange": "nova"}, DatabaseFile: "nova.db",
		Flags: []component.Flag{{Name: "port", Option: "osapi_compute_listen_port", Help: "port of the API; 0: any free port (option osapi_compute_listen_port)"}},
		Services: []component.Service[options]{
			{Name: "conductor", Short: "Run the conductor service, which runs the operations on servers", Wire: wireConductor},
			{Name: "scheduler", Short: "Run the scheduler service, which chooses hosts", Wire: wireScheduler},
			{Name: "compute", Short: "Run the compute service, which builds servers on this host", Wire: wireCompute, NoDatabase: true, AutoCaps: rpccaps.Ask(compute.VersionCaps, compute.Unreported)},
			{Name: "consoleproxy", Short: "Run the console proxy, which connects browsers to the consoles of servers", Wire: wireConsoleProxy, Disabled: func(o *options) bool { return !o.consoles() }},
			{Name: "api", Short: "Run the API service", Wire: wireAPI},
		},
		Migrations: store.Migrations(), Rules: api.Rules(),
		Interfaces: []*rpc.Interface{compute.Worker, compute.Conductor, compute.Scheduler}, Unreported: compute.Unreported,
		Runner:    func(o *options) operation.RunnerConfig { return operation.RunnerConfig{Lease: o.RetryInterval} },
		OwnNotify: true, // compute.Notify notifies conductors
		Address:   (*options).address,
		OpenAPI:   func(version string) (any, error) { return api.OpenAPI(cmp.Or(version, "2.1")) },
		Changes:   api.Described(),
		Audit: func(ctx context.Context, d *sqlx.DB, repair bool, minAge time.Duration) ([]placement.Finding, error) {
			return store.New(d).Audit(ctx, repair, minAge)
		},
		Commands: upgradeCommands, Started: printGreeting,
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

// exampleImage returns the name of an image for the commands that greet prints. If nova-mini cannot choose an image, the name
// is IMAGE, and note tells the user what to write instead.
func exampleImage(p *component.Process[options]) (name, note string) {
	ctx := context.Background()
	if p.Options.Glance.AuthURL != "" {
		return "IMAGE", "IMAGE stands for the ID of an image: openstack image list\n\n"
	}
	source, err := imageSource(ctx, p)
	if err == nil && source == nil {
		return "IMAGE", "IMAGE stands for the name of an image that the driver knows\n\n"
	}
	var list []image.Image
	if err == nil {
		list, err = source.List(ctx, "")
	}
	i := slices.IndexFunc(list, func(is image.Image) bool { // one that any host can boot
		needs, err := image.Needs(is.Properties)
		return err == nil && needs.IsZero() && plainName.MatchString(is.ID)
	})
	if err != nil || i < 0 { // each request reads the directory again, and reports the error
		return "IMAGE", "IMAGE stands for the name of an image in " + p.Options.Image.Directory + "\n\n"
	}
	return list[i].ID, ""
}

// plainName matches a name that needs no quotes in a command.
var plainName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

// printGreeting prints the URL of the API, if the process has one, and commands to try the API.
func printGreeting(p *component.Process[options]) error {
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
	from, note := exampleImage(p)
	text := fmt.Sprintf(`nova-mini listens on %[1]s

%[5]s%[3]s

  ID=$(%[2]s %[1]s/v2.1/servers -H 'Content-Type: application/json' -d '{"server": {"name": "demo", "flavorRef": "1", "imageRef": "%[4]s"}}' | sed 's/.*"id":"\([^"]*\)".*/\1/'); echo "$ID"
  %[2]s -w '\n' %[1]s/v2.1/servers/detail
  %[2]s -w '\n' "%[1]s/v2.1/servers/$ID"

`, url, curl, hint, from, note)
	if !p.Options.Authenticated() {
		text += fmt.Sprintf(`The same with OpenStack's own command, see docs/openstack-client.md:

  export OS_AUTH_TYPE=none OS_ENDPOINT=%s/v2.1 OS_COMPUTE_API_VERSION=2.79
  openstack server create --image %s --flavor m1.tiny --network none --wait demo-2

`, url, from)
	}
	_, err := io.WriteString(p.Out, text)
	return err
}
