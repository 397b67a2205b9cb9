// Package config fills a struct of options from INI files, the environment and
// flags, as oslo.config does. One rule differs: an option or a section that is
// not declared is an error, because otherwise a misspelled option would have
// no effect, and no message would say so.
//
//	type Options struct {
//		Workers  int    `ini:"workers" default:"4" min:"1" help:"calls handled at once"`
//		Database struct {
//			Connection string `ini:"connection" secret:"true" required:"true" help:"URL of the database"`
//		} `section:"database"`
//		Backends map[string]Backend           `sections:"backend_"` // Backend is a struct of options
//		Drivers  map[string]map[string]string `sections:"driver_"`
//	}
//
//	c, err := config.Open[Options](config.Source{Files: files, Env: os.Environ()})
//	app.Add("config", c)        // SIGHUP reloads it
//	c.Current().Workers
//
// A field with the tag ini is an option. Its type is string, bool, an integer, a float,
// [time.Duration] (a number without a unit is in seconds), []string (items separated by commas;
// an item with a comma is in quotes), map[string]string (a:b,c:d), or a type that parses its own
// text ([encoding.TextUnmarshaler], such as netip.Addr). A value with a NUL byte, a value that is not UTF-8, and a list that
// has only commas are errors. A field may have these tags:
//
//	default      the value if no source sets the option, in the form of a file
//	help         a sentence for operators
//	min, max     bounds of a number or a duration, of the length of a text in bytes, or of the
//	             number of items of a list or map
//	choices      the allowed values, separated by commas; for a list, the allowed items
//	regex        an expression that a text must match, as by regexp.MatchString; for a list, each
//	             item must match
//	multi        "true": a []string with one item for each time that the option is set, in all
//	             files together; values are not split at commas
//	required     "true": a source must set the option, and not to an empty text
//	secret       "true": no error and no output has the value; the option NAME_file may name a file
//	             with the value
//	reloadable   "true": a change takes effect without a restart
//	deprecated   older names, each NAME or SECTION.NAME, separated by commas
//	removed      a reason: the option has no effect any more; a source that sets it causes a warning
//	unsupported  a reason: any value but the default is an error, even in lenient mode
//	protects     "true": the option protects the service, by identity, TLS or a checksum. An
//	             unknown option or section whose name is similar to the option's, to one of its
//	             older names, or to its section, is an error, even in lenient mode
//	strict       "true": the value false of this bool selects the lenient mode, see [Source].Lenient
//
// In lenient mode, an unknown option in a declared section is also an error if it may request protection: a word
// of its name is about TLS or identity, such as ssl, cert or cafile, and its value is not empty, false, no, off, 0
// or none. This rule needs no tag.
//
// A file sets an option once: a second value is an error, which names both lines, unless the option has the tag multi. A later file may set the option again.
//
// An option belongs to [DEFAULT], or to the section that the struct field around it names. A map
// field with the tag sections is a family: it takes each section whose name begins with the tag's
// value. The key in the map is the rest of the name: [driver_acme] is Drivers["acme"]. A map of structs is a typed family: each of
// its sections has the options of the struct, with all tags but strict, and without sections of its own. Two sections of a typed family
// whose names differ only in upper and lower case, or in - and _, are an error, because they have the same environment variables. The value
// of the tag must not begin with that of another family. A map of maps takes raw values. Its sections whose names differ only in upper and
// lower case are one section. With the tag reloadable, a reload adds, removes and changes the sections of a family. If the field has
// the tag protects, a section with a similar name, such as [drivr_acme], is an error, even in lenient mode.
// Fields of an embedded struct belong to the outer struct. Fields without one of the tags ini, section and sections stay as they are.
//
// The struct of options may have a method Validate() error, for rules that tags cannot express. So may the struct of a section, the struct of a
// section of a family, and an embedded struct. The methods are called at each load and reload. They must not change the struct, and must not use the
// network. Before the calls, each wrong value is replaced by its default, and an error of Validate about such an option is left out.
//
// An error of Validate may name its option: NAME or SECTION.NAME, as the value "option" in the Meta of its
// [github.com/armature-go/armature/fault.Error]. Then the text of the error begins with the place of this option. Several names are separated by spaces; the
// place is that of the first option that a source sets. The text of any other error gets the name of the section, unless that is DEFAULT. If other values are wrong, an
// error without the name of an option is left out. Errors joined by errors.Join are one error each.
//
// The names of sections are case-insensitive, except DEFAULT. The package does not read the
// environment by itself. It expands variables only in lenient mode. In strict mode a password may contain a $.
package config

import (
	"fmt"
	"log/slog"
	"reflect"
)

// Source names the sources of values. Later sources override earlier ones, as in oslo.config. The order is: an
// option's default, Defaults, Files, Env, Flags, Overrides. Within one source the last value counts, and a value
// under the option's name overrides values under its older names.
type Source struct {
	// Defaults override the defaults of options, for a component that needs other defaults. Keys are
	// NAME for [DEFAULT] and SECTION.NAME otherwise: "workers", "database.connection".
	Defaults map[string]string
	// Files are paths. A later file overrides an earlier one. A directory stands for its files
	// *.conf in the order of their names. Each path must exist; [Find] returns paths that exist.
	Files []string
	// Env are variables in the form of os.Environ. OS_DATABASE__CONNECTION sets the option
	// connection of [database], and OS_DRIVER_ACME__DIR the option dir of [driver_acme], a section of
	// a family. The names of such a section and of its options are spelled as in the files; names that no file
	// has are in lower case. An unknown section or option has the same result as in a file. Variables
	// without a double underscore, such as OS_AUTH_URL, are ignored, because they belong to other programs.
	Env []string
	// Flags are options of the command line, with keys as in Defaults.
	Flags map[string]string
	// FlagNames are the flags as the user writes them, such as "--port", for errors and [Value].Where. Keys are as in Flags. Default: the key
	// itself.
	FlagNames map[string]string
	// Overrides are values that the program insists on, with keys as in Defaults.
	Overrides map[string]string
	// Lenient selects the lenient mode, for files that were written for a program with oslo.config. Unknown options
	// and sections in files and in the environment are warnings, except those that may be meant for protection, see
	// the package comment. In all values $name, ${name} and ${section.name} are replaced by the value of that option,
	// and $$ by $. A variable that names no option is an error. Default false: strict mode, unless an option
	// with the tag strict is false.
	Lenient bool
	// Logger gets the warnings, each once, and the changes of each reload. Default [slog.Default].
	Logger *slog.Logger
}

// FlagSet is the part of a [flag.FlagSet] that AddFlags needs. Other libraries' flag sets may also have it.
type FlagSet interface {
	Func(name, usage string, f func(string) error)
}

// AddFlags defines the flags --config-file and --config-dir. Both may be repeated. Their values are
// appended to Files in the order of the command line.
func (s *Source) AddFlags(fs FlagSet) {
	appendFile := func(path string) error { s.Files = append(s.Files, path); return nil }
	fs.Func("config-file", "INI `file` with options; may be repeated, a later file overrides an earlier one", appendFile)
	fs.Func("config-dir", "`directory` whose files *.conf are read in the order of their names; may be repeated, also between files", appendFile)
}

// Load sets the options in the struct that opts points to. Load fails with Invalid if the sources have errors, or if
// a Validate method fails. The text has a line for each error, with its file and line, or its variable or flag. After an error
// opts is unchanged. Load panics if the struct does not follow the package comment, which is a programmer's error.
func Load(opts any, src Source) error {
	target := structOf(opts)
	work := reflect.New(target.Type()).Elem()
	work.Set(target)
	l, err := loadStruct(work, src)
	if err != nil {
		return err
	}
	l.logWarnings(src, map[string]bool{})
	target.Set(work)
	return nil
}

// structOf returns the struct that opts points to. It panics if opts is not a pointer to a struct.
func structOf(opts any) reflect.Value {
	target := reflect.ValueOf(opts)
	if target.Kind() != reflect.Pointer || target.Elem().Kind() != reflect.Struct {
		panic(fmt.Sprintf("config: %T, want a pointer to a struct", opts))
	}
	return target.Elem()
}

// Value is an option with its value.
type Value struct {
	Section string `json:"section"`
	Name    string `json:"name"`
	// Value has the form of a file. It is *** if the option is secret and not empty. Passwords in URLs are also ***.
	Value string `json:"value"`
	// Where is the origin of the value: default, FILE:LINE, environment NAME, flag NAME (see [Source].FlagNames), program's
	// default NAME, program's override NAME. If the option NAME_file names a file with the value, that file follows
	// in parentheses.
	Where string `json:"where"`
	// Wrong reports that the error of [Inspect] is about this value. In this case [Config.Current] has the
	// default, unless a Validate method has refused the value.
	Wrong bool `json:"wrong,omitempty"`
}
