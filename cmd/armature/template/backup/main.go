// Command backup is a component with a REST API, a conductor and workers.
//
//	backup              run everything in one process, without other software
//	backup api          serve the REST API
//	backup conductor    choose a host for each backup, and run the operations
//	backup worker       make backups on this host, through a driver
//	backup --help       all commands
package main

import (
	"embed"

	"github.com/armature-go/armature/cmd/armature/template/backup/backupdriver"
	"github.com/armature-go/armature/component"
	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/rpc"
)

//go:embed migrations/*.sql
var migrations embed.FS

// options are the options of the program. The embedded structs have the options that every component has: see "backup config sample".
type options struct {
	component.Options
	component.APIOptions
	component.DriverOptions
	MaxSize int64 `ini:"max_size" default:"1024" min:"1" help:"largest size of a backup, in GiB"`
}

// newComponent returns the component. The parameter builtIn is the driver that the option driver = memory names. Other drivers are programs,
// see package backupdriver.
func newComponent(builtIn backupdriver.Driver) component.Component[options] {
	return component.Component[options]{
		Name: "backup", Short: "Makes backups", Resource: "backup",
		Defaults:   map[string]string{"driver": "memory", "state_path": "data"},
		Migrations: []db.Migrations{db.Embedded("", migrations)},
		Rules:      rules,
		Interfaces: []*rpc.Interface{workerInterface, conductorInterface},
		Services: []component.Service[options]{
			{Name: "api", Short: "Serve the REST API", Wire: wireAPI},
			{Name: "conductor", Short: "Run operations", Wire: wireConductor},
			{Name: "worker", Short: "Make backups on this host", NoDatabase: true, Wire: workerWith(component.BuiltIn("memory", builtIn))},
		},
	}
}

func main() { component.Main(newComponent(backupdriver.NewMemory())) }
