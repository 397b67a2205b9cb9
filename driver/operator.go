package driver

import (
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/armature-go/armature/fault"
)

// Options are the operator's options for the driver of a worker, in the form of package service/config. A component embeds them in its struct
// of options, and sets the default of the option driver. The section [driver_NAME] has the options of the driver NAME, see
// [PluginConfig.Configure].
type Options struct {
	Driver    string                       `ini:"driver" help:"driver: the name of a built-in driver, NAME for the driver program armature-KIND-NAME in plugin_dir, or the absolute path of a driver program"`
	PluginDir string                       `ini:"plugin_dir" default:"/usr/lib/armature/plugins" help:"directory of the driver programs"`
	Drivers   map[string]map[string]string `sections:"driver_" protects:"true" reloadable:"true"`
}

// Validate refuses a relative path of a driver's program, and sections of drivers that are not in use. The name of such a section may be misspelled, and then the checksum of the
// driver in use would not be compared.
func (o *Options) Validate() error {
	if strings.Contains(o.Driver, "/") && !filepath.IsAbs(o.Driver) {
		return fault.WithReason(fault.New(fault.Invalid, "%q is neither the name of a driver nor an absolute path", o.Driver), "", map[string]string{"option": "driver"})
	}
	want := o.Section()
	for _, name := range slices.Sorted(maps.Keys(o.Drivers)) {
		if name != want {
			err := fault.New(fault.Invalid, "driver = %s has the section [driver_%s], and no other driver is in use; remove this section or correct its name", o.Driver, want)
			return fault.WithReason(err, "", map[string]string{"option": "driver_" + name + "."})
		}
	}
	return nil
}

// Config returns the configuration of the driver, without Logger and Observe. Its errors are those of [PluginConfig.Configure].
func (o *Options) Config() (PluginConfig, error) {
	cfg := PluginConfig{Program: o.Driver, Dir: o.PluginDir}
	err := cfg.Configure(o.Drivers[o.Section()])
	return cfg, err
}

// Section returns the name of the driver's section without driver_. If no section has the exact name, Section ignores case and
// the difference between - and _, because names of environment variables have neither lower-case letters nor -.
func (o *Options) Section() string {
	name := o.Name()
	if _, ok := o.Drivers[name]; ok {
		return name
	}
	plain := strings.NewReplacer("-", "_")
	for _, known := range slices.Sorted(maps.Keys(o.Drivers)) {
		if strings.EqualFold(plain.Replace(known), plain.Replace(name)) {
			return known
		}
	}
	return name
}

// Name returns the driver's name. The name of the program armature-KIND-NAME is NAME.
func (o *Options) Name() string {
	base := filepath.Base(o.Driver)
	if rest, ok := strings.CutPrefix(base, "armature-"); ok {
		if _, name, ok := strings.Cut(rest, "-"); ok {
			return name
		}
	}
	return base
}
