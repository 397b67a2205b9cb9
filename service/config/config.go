// Package config fills a struct of options from INI files, the environment
// and flags, as oslo.config does, except that a name nobody declared is an
// error: a misspelt option must not be silently without effect.
//
//	type Options struct {
//		Workers  int    `ini:"workers" default:"4" min:"1" help:"calls handled at once"`
//		Database struct {
//			Connection string `ini:"connection" secret:"true" required:"true" help:"URL of the database"`
//		} `section:"database"`
//		Drivers map[string]map[string]string `sections:"driver_"`
//	}
//
//	c, err := config.Open[Options](config.Source{Files: files, Env: os.Environ()})
//	app.Add("config", c)        // SIGHUP reads it again
//	c.Current().Workers
//
// A field with the tag ini is an option: a string, bool, integer, float,
// [time.Duration] (a plain number is in seconds), []string (separated by commas, in
// quotes if an item has one), map[string]string (a:b,c:d), or a type that reads its own
// text ([encoding.TextUnmarshaler], such as netip.Addr). Its further tags are
//
//	default      the value without any, in the form a file has it
//	help         a sentence for operators
//	min, max     bounds of a number, a duration, or the length of a list
//	choices      the values that there are, separated by commas; of a list, for each item
//	regex        what a text has to match, as regexp.MatchString; of a list, each item
//	multi        "true": a []string that has an item for each time that it is set, in
//	             all files together, and is not split at commas
//	required     "true": it must be set
//	secret       "true": no error and no page shows it; NAME_file names a file that has it
//	reloadable   "true": a change takes effect without a restart
//	deprecated   older names, NAME or SECTION.NAME, separated by commas
//	removed      it has no effect any more, and why: it is taken, with a warning
//	unsupported  why no other value than the default is taken: it is an error, never ignored
//	protects     "true": it protects, such as identity, TLS or a checksum: an unknown option or
//	             section that may be meant for it is an error, also where unknown ones are not
//	strict       "true": a bool; while it is false unknown options are warnings
//
// Options stand in [DEFAULT], or in the section of the struct field around them. A map
// field with the tag sections takes every section whose name starts so, with raw values,
// by the rest of the name: [driver_acme] is Drivers["acme"]. Embedded structs
// count as if their fields stood in the outer one; other fields are left alone.
//
// Names of sections may have any case, except DEFAULT. The package reads no environment by
// itself, and expands no variables unless it is lenient: a $ in a password stays.
package config

import (
	"fmt"
	"log/slog"
	"reflect"
)

// Source says where values come from, the weakest first, as in oslo.config: an option's
// default, Defaults, Files, Env, Flags, Overrides. What stands later in one source counts,
// and an option's name more than an older name of it.
type Source struct {
	// Defaults are those of a component that are other than its options' own, as
	// "workers" or "database.connection".
	Defaults map[string]string
	// Files are read in this order: a later one overrides an earlier one. A directory
	// stands for its files *.conf, by name. Each must exist; [Find] finds those that do.
	Files []string
	// Env are variables as of os.Environ. OS_DATABASE__CONNECTION is the option
	// connection of [database]. A name of a declared section without such an option is an
	// error, as in a file; all other variables are other programs'.
	Env []string
	// Flags are options given on the command line, by names as in Defaults.
	Flags map[string]string
	// Overrides are what a program insists on, by names as in Defaults.
	Overrides map[string]string
	// Lenient takes files that were written for a program of oslo.config: options and
	// sections in them that nobody has declared are warnings, and in all values $name,
	// ${name} and ${section.name} stand for the value of another option, as far as
	// there is one, and $$ for a $. An option with the tag strict does the same.
	Lenient bool
	// Logger gets the warnings, each once. Default slog.Default().
	Logger *slog.Logger
}

// FlagSet is a [flag.FlagSet], or that of another library.
type FlagSet interface {
	Func(name, usage string, f func(string) error)
}

// AddFlags adds --config-file and --config-dir to a command line, which may be repeated,
// and count among Files in the order in which they are given.
func (s *Source) AddFlags(fs FlagSet) {
	more := func(path string) error { s.Files = append(s.Files, path); return nil }
	fs.Func("config-file", "INI `file` with options; may be repeated, later ones win", more)
	fs.Func("config-dir", "`directory` whose files *.conf are read in its place among the files; may be repeated", more)
}

// Load sets the options in the struct that opts points to. The error, with code
// Invalid, has one line for each thing that is wrong, which says where it
// stands, and opts is then as it was. It panics if the struct is not
// as the package comment says: a programmer's error.
func Load(opts any, src Source) error {
	target := pointer(opts)
	work := reflect.New(target.Type()).Elem()
	work.Set(target)
	l, err := load(work, src)
	if err != nil {
		return err
	}
	l.warn(src, map[string]bool{})
	target.Set(work)
	return nil
}

func pointer(opts any) reflect.Value {
	target := reflect.ValueOf(opts)
	if target.Kind() != reflect.Pointer || target.Elem().Kind() != reflect.Struct {
		panic(fmt.Sprintf("config: %T, want a pointer to a struct", opts))
	}
	return target.Elem()
}

// Value is an option as it is.
type Value struct {
	Section string `json:"section"`
	Name    string `json:"name"`
	// Value is in the form a file has it, or *** if it is secret and not empty.
	Value string `json:"value"`
	// Where is where it stands: default, FILE:LINE, environment NAME, flag NAME.
	Where string `json:"where"`
	// Wrong reports that the value is a part of the error of [Inspect]. The option has its default then.
	Wrong bool `json:"wrong,omitempty"`
}
