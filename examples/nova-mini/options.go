package main

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/service/config"
)

// options are those of nova.conf that nova-mini knows. Names, sections and
// defaults are Nova's, where Nova has them.
type options struct {
	Host            string                       `ini:"host" help:"name of this host, the same after every restart (default: the machine's)"`
	ComputeDriver   string                       `ini:"compute_driver" default:"fake" help:"driver of the compute service"`
	TransportURL    string                       `ini:"transport_url" secret:"true" help:"message bus: rabbit://user:password@host:port[,user:password@host:port]/vhost, amqps:// alike, nats://user:password@host:port[,...], tls:// alike"`
	ControlExchange string                       `ini:"control_exchange" default:"nova" help:"first part of the names of all queues"`
	Listen          string                       `ini:"osapi_compute_listen" default:"127.0.0.1" help:"address of the API"`
	Port            int                          `ini:"osapi_compute_listen_port" default:"8774" help:"port of the API, 0 for any free one"`
	StatePath       string                       `ini:"state_path" help:"directory for the data of the fake driver and of the embedded database"`
	ReportInterval  time.Duration                `ini:"report_interval" default:"10" help:"seconds between signs of life"`
	ServiceDownTime time.Duration                `ini:"service_down_time" default:"60" help:"seconds of silence after which a service is down"`
	BuildTimeout    time.Duration                `ini:"instance_build_timeout" default:"600" help:"seconds that a build may take on one host"`
	RetryInterval   time.Duration                `ini:"task_retry_interval" default:"15" help:"seconds of silence after which a step of a task is done again"`
	ShutdownTimeout time.Duration                `ini:"graceful_shutdown_timeout" default:"60" help:"seconds that running work may take after SIGTERM"`
	CPURatio        float64                      `ini:"cpu_allocation_ratio" default:"4.0" help:"virtual CPUs per real one"`
	RAMRatio        float64                      `ini:"ram_allocation_ratio" default:"1.0" help:"memory of servers per real memory"`
	DiskRatio       float64                      `ini:"disk_allocation_ratio" default:"1.0" help:"disk of servers per real disk"`
	Debug           bool                         `ini:"debug" default:"false" help:"log at debug level"`
	Database        databaseOptions              `section:"database"`
	Scheduler       schedulerOptions             `section:"scheduler"`
	FilterScheduler filterOptions                `section:"filter_scheduler"`
	Rabbit          rabbitOptions                `section:"oslo_messaging_rabbit"`
	Drivers         map[string]map[string]string `sections:"driver_"`
}

type databaseOptions struct {
	Connection  string `ini:"connection" secret:"true" help:"mysql://user:password@host:port/name or sqlite:///path/nova.db"`
	MaxPoolSize int    `ini:"max_pool_size" default:"10" help:"connections to the database"`
}

type schedulerOptions struct {
	MaxAttempts int `ini:"max_attempts" default:"3" help:"hosts on which a build is tried"`
}

type filterOptions struct {
	EnabledFilters    []string `ini:"enabled_filters" help:"filters in the order in which they are asked, by their own names or Nova's (default: tried, disabled, down, VCPU, MEMORY_MB, DISK_GB)"`
	HostSubsetSize    int      `ini:"host_subset_size" default:"3" help:"one of so many best hosts is drawn"`
	RAMMultiplier     float64  `ini:"ram_weight_multiplier" default:"1.0" help:"how much free memory counts, negative to fill hosts up"`
	CPUMultiplier     float64  `ini:"cpu_weight_multiplier" default:"1.0" help:"how much free virtual CPUs count"`
	DiskMultiplier    float64  `ini:"disk_weight_multiplier" default:"1.0" help:"how much free disk counts"`
	ServersMultiplier float64  `ini:"num_instances_weight_multiplier" default:"0.0" help:"how much the number of servers counts"`
}

type rabbitOptions struct {
	QuorumQueue bool `ini:"rabbit_quorum_queue" default:"false" help:"keep casts in quorum queues; queues that exist keep their type"`
}

// flags are those of the command line.
type flags struct {
	out       io.Writer
	files     []string
	statePath string
	port      string
}

// load reads the options.
func (f *flags) load() (*options, error) {
	given := map[string]string{}
	if f.statePath != "" {
		given["state_path"] = f.statePath
	}
	if f.port != "" {
		given["osapi_compute_listen_port"] = f.port
	}
	o := new(options)
	if err := config.Load(o, config.Source{Files: f.files, Env: os.Environ(), Flags: given}); err != nil {
		return nil, err
	}
	if o.Host == "" {
		name, err := os.Hostname()
		if err != nil {
			return nil, fmt.Errorf("option host is not set, and the machine has no name: %w", err)
		}
		o.Host = name
	}
	if o.ReportInterval <= 0 || o.ServiceDownTime <= o.ReportInterval {
		return nil, fault.New(fault.Invalid, "service_down_time (%v) must be longer than report_interval (%v), which must be positive", o.ServiceDownTime, o.ReportInterval)
	}
	return o, nil
}

// logger writes to standard error, with the ids of the request.
func (o *options) logger() *slog.Logger {
	level := slog.LevelInfo
	if o.Debug {
		level = slog.LevelDebug
	}
	return slog.New(reqctx.LogHandler(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})))
}

func (o *options) address() string { return net.JoinHostPort(o.Listen, strconv.Itoa(o.Port)) }

// driverOptions returns the options of the configured driver as JSON values.
func (o *options) driverOptions() map[string]any {
	out := map[string]any{}
	for k, v := range o.Drivers[o.ComputeDriver] {
		out[k] = v
	}
	return out
}
