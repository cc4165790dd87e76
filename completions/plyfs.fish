# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_plyfs_global_optspecs
    string join \n root= h/help V/version
end

function __fish_plyfs_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_plyfs_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_plyfs_using_subcommand
    set -l cmd (__fish_plyfs_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c plyfs -n "__fish_plyfs_needs_command" -l root -d 'The image store [default: /var/lib/plyfs for root, $XDG_DATA_HOME/plyfs otherwise]' -r -F
complete -c plyfs -n "__fish_plyfs_needs_command" -s h -l help -d 'Print help'
complete -c plyfs -n "__fish_plyfs_needs_command" -s V -l version -d 'Print version'
complete -c plyfs -n "__fish_plyfs_needs_command" -f -a "load" -d 'Load images from archives or OCI layout folders into the store'
complete -c plyfs -n "__fish_plyfs_needs_command" -f -a "import" -d 'Make an image of one layer from the tar of a root filesystem'
complete -c plyfs -n "__fish_plyfs_needs_command" -f -a "save" -d 'Write images into a docker-archive, an OCI archive or an OCI layout'
complete -c plyfs -n "__fish_plyfs_needs_command" -f -a "images" -d 'List the images in the store'
complete -c plyfs -n "__fish_plyfs_needs_command" -f -a "inspect" -d 'Tell all about images, or writable layers, as JSON'
complete -c plyfs -n "__fish_plyfs_needs_command" -f -a "history" -d 'Tell how an image came about, step by step'
complete -c plyfs -n "__fish_plyfs_needs_command" -f -a "tag" -d 'Give an image one more name'
complete -c plyfs -n "__fish_plyfs_needs_command" -f -a "rmi" -d 'Take names from images; with the last name the image goes'
complete -c plyfs -n "__fish_plyfs_needs_command" -f -a "df" -d 'Tell what images take, by themselves and together'
complete -c plyfs -n "__fish_plyfs_needs_command" -f -a "gc" -d 'Remove what no image uses'
complete -c plyfs -n "__fish_plyfs_needs_command" -f -a "verify" -d 'Check that layers on disk are what their digests say'
complete -c plyfs -n "__fish_plyfs_needs_command" -f -a "mount" -d 'Mount an image, or directories, as one tree'
complete -c plyfs -n "__fish_plyfs_needs_command" -f -a "umount" -d 'Unmount a tree'
complete -c plyfs -n "__fish_plyfs_needs_command" -f -a "ps" -d 'List the writable layers and where they are mounted'
complete -c plyfs -n "__fish_plyfs_needs_command" -f -a "diff" -d 'List what a writable layer adds (A), changes (C) and deletes (D)'
complete -c plyfs -n "__fish_plyfs_needs_command" -f -a "rm" -d 'Remove writable layers that are not mounted'
complete -c plyfs -n "__fish_plyfs_needs_command" -f -a "stats" -d 'Count the requests that a mount has answered'
complete -c plyfs -n "__fish_plyfs_needs_command" -f -a "completions" -d 'Print a shell\'s completions of this command line'
complete -c plyfs -n "__fish_plyfs_using_subcommand load" -s i -l input -d 'The same, as docker has it' -r -F
complete -c plyfs -n "__fish_plyfs_using_subcommand load" -l platform -d 'Of an index, the image for OS/ARCHITECTURE[/VARIANT]; default: this machine\'s' -r
complete -c plyfs -n "__fish_plyfs_using_subcommand load" -l limit -d 'Raise (or lower) a limit: bytes, entries, depth, path, xattr, ratio, document, layers, images, names or lookups' -r
complete -c plyfs -n "__fish_plyfs_using_subcommand load" -l format -d 'How to print what was loaded' -r -f -a "table\t'Text for people'
json\t'One JSON object per line'"
complete -c plyfs -n "__fish_plyfs_using_subcommand load" -l root -d 'The image store [default: /var/lib/plyfs for root, $XDG_DATA_HOME/plyfs otherwise]' -r -F
complete -c plyfs -n "__fish_plyfs_using_subcommand load" -l keep-blobs -d 'Keep the layers\' blobs as they are compressed, and the manifest: `save` gives them back'
complete -c plyfs -n "__fish_plyfs_using_subcommand load" -s q -l quiet -d 'Do not show how far it is'
complete -c plyfs -n "__fish_plyfs_using_subcommand load" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c plyfs -n "__fish_plyfs_using_subcommand import" -s m -l message -d 'A note in the image\'s history' -r
complete -c plyfs -n "__fish_plyfs_using_subcommand import" -l platform -d 'Of an index, the image for OS/ARCHITECTURE[/VARIANT]; default: this machine\'s' -r
complete -c plyfs -n "__fish_plyfs_using_subcommand import" -l limit -d 'Raise (or lower) a limit: bytes, entries, depth, path, xattr, ratio, document, layers, images, names or lookups' -r
complete -c plyfs -n "__fish_plyfs_using_subcommand import" -l format -d 'How to print what was made' -r -f -a "table\t'Text for people'
json\t'One JSON object per line'"
complete -c plyfs -n "__fish_plyfs_using_subcommand import" -l root -d 'The image store [default: /var/lib/plyfs for root, $XDG_DATA_HOME/plyfs otherwise]' -r -F
complete -c plyfs -n "__fish_plyfs_using_subcommand import" -s q -l quiet -d 'Do not show how far it is'
complete -c plyfs -n "__fish_plyfs_using_subcommand import" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c plyfs -n "__fish_plyfs_using_subcommand save" -s o -l output -d 'Write here instead of to stdout; with --format oci a new or empty folder' -r -F
complete -c plyfs -n "__fish_plyfs_using_subcommand save" -l format -d 'What to write (default: docker-archive), and how to print what was written; may be given for both' -r -f -a "docker-archive\t'What docker save writes'
oci-archive\t'A tar of an OCI image layout'
oci\t'A folder: an OCI image layout'
json\t'Print a JSON object for each image'"
complete -c plyfs -n "__fish_plyfs_using_subcommand save" -l compression -d 'How to compress layers; default: as they were, if they were loaded with --keep-blobs and go into an OCI archive or layout, else not' -r -f -a "none\t'Not at all'
gzip\t'gzip'
zstd\t'Zstandard'"
complete -c plyfs -n "__fish_plyfs_using_subcommand save" -l root -d 'The image store [default: /var/lib/plyfs for root, $XDG_DATA_HOME/plyfs otherwise]' -r -F
complete -c plyfs -n "__fish_plyfs_using_subcommand save" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c plyfs -n "__fish_plyfs_using_subcommand images" -l format -d 'How to print' -r -f -a "table\t'Text for people'
json\t'One JSON object per line'"
complete -c plyfs -n "__fish_plyfs_using_subcommand images" -l root -d 'The image store [default: /var/lib/plyfs for root, $XDG_DATA_HOME/plyfs otherwise]' -r -F
complete -c plyfs -n "__fish_plyfs_using_subcommand images" -s q -l quiet -d 'Print IDs only'
complete -c plyfs -n "__fish_plyfs_using_subcommand images" -l no-trunc -d 'Print whole IDs'
complete -c plyfs -n "__fish_plyfs_using_subcommand images" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c plyfs -n "__fish_plyfs_using_subcommand inspect" -l format -d 'How to print: a JSON array, or one object per line' -r -f -a "table\t'Text for people'
json\t'One JSON object per line'"
complete -c plyfs -n "__fish_plyfs_using_subcommand inspect" -l root -d 'The image store [default: /var/lib/plyfs for root, $XDG_DATA_HOME/plyfs otherwise]' -r -F
complete -c plyfs -n "__fish_plyfs_using_subcommand inspect" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c plyfs -n "__fish_plyfs_using_subcommand history" -l format -d 'How to print' -r -f -a "table\t'Text for people'
json\t'One JSON object per line'"
complete -c plyfs -n "__fish_plyfs_using_subcommand history" -l root -d 'The image store [default: /var/lib/plyfs for root, $XDG_DATA_HOME/plyfs otherwise]' -r -F
complete -c plyfs -n "__fish_plyfs_using_subcommand history" -l no-trunc -d 'Print whole IDs and commands'
complete -c plyfs -n "__fish_plyfs_using_subcommand history" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c plyfs -n "__fish_plyfs_using_subcommand tag" -l format -d 'How to print: nothing, or the name and the image as a JSON object' -r -f -a "table\t'Text for people'
json\t'One JSON object per line'"
complete -c plyfs -n "__fish_plyfs_using_subcommand tag" -l root -d 'The image store [default: /var/lib/plyfs for root, $XDG_DATA_HOME/plyfs otherwise]' -r -F
complete -c plyfs -n "__fish_plyfs_using_subcommand tag" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c plyfs -n "__fish_plyfs_using_subcommand rmi" -l format -d 'How to print' -r -f -a "table\t'Text for people'
json\t'One JSON object per line'"
complete -c plyfs -n "__fish_plyfs_using_subcommand rmi" -l root -d 'The image store [default: /var/lib/plyfs for root, $XDG_DATA_HOME/plyfs otherwise]' -r -F
complete -c plyfs -n "__fish_plyfs_using_subcommand rmi" -s f -l force -d 'Remove an image that is asked for by its ID with all its names'
complete -c plyfs -n "__fish_plyfs_using_subcommand rmi" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c plyfs -n "__fish_plyfs_using_subcommand df" -l format -d 'How to print' -r -f -a "table\t'Text for people'
json\t'One JSON object per line'"
complete -c plyfs -n "__fish_plyfs_using_subcommand df" -l root -d 'The image store [default: /var/lib/plyfs for root, $XDG_DATA_HOME/plyfs otherwise]' -r -F
complete -c plyfs -n "__fish_plyfs_using_subcommand df" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c plyfs -n "__fish_plyfs_using_subcommand gc" -l format -d 'How to print' -r -f -a "table\t'Text for people'
json\t'One JSON object per line'"
complete -c plyfs -n "__fish_plyfs_using_subcommand gc" -l root -d 'The image store [default: /var/lib/plyfs for root, $XDG_DATA_HOME/plyfs otherwise]' -r -F
complete -c plyfs -n "__fish_plyfs_using_subcommand gc" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c plyfs -n "__fish_plyfs_using_subcommand verify" -l format -d 'How to print' -r -f -a "table\t'Text for people'
json\t'One JSON object per line'"
complete -c plyfs -n "__fish_plyfs_using_subcommand verify" -l root -d 'The image store [default: /var/lib/plyfs for root, $XDG_DATA_HOME/plyfs otherwise]' -r -F
complete -c plyfs -n "__fish_plyfs_using_subcommand verify" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c plyfs -n "__fish_plyfs_using_subcommand mount" -l lower -d 'Mount this directory instead of an image; the first is on top' -r -F
complete -c plyfs -n "__fish_plyfs_using_subcommand mount" -l upper -d 'Put changes here (with --lower)' -r -F
complete -c plyfs -n "__fish_plyfs_using_subcommand mount" -l work -d 'Build changes here; on the same filesystem as --upper' -r -F
complete -c plyfs -n "__fish_plyfs_using_subcommand mount" -l name -d 'Name of the image\'s writable layer; one that exists is mounted again' -r
complete -c plyfs -n "__fish_plyfs_using_subcommand mount" -l form -d 'What may lie in the writable layer; default: rich for an image, plain for directories' -r -f -a "plain\t'Files and marks alone: a valid OCI changeset at any time'
rich\t'Private xattrs too: directories are renamed, and attributes changed, without a copy'"
complete -c plyfs -n "__fish_plyfs_using_subcommand mount" -l io -d 'Who reads and writes the data: the daemon, with the kernel\'s cache, or the kernel itself' -r -f -a "auto\t'What is fastest for most: cache'
cache\t'Opening and closing asks nobody; the daemon reads and writes'
passthrough\t'Opening asks the daemon; the kernel reads and writes (root, Linux 6.9)'"
complete -c plyfs -n "__fish_plyfs_using_subcommand mount" -l idle -d 'What processors do while they wait for a request' -r -f -a "sleep\t'As the system does'
poll\t'Poll while requests follow one another closely: faster, and takes power (root)'"
complete -c plyfs -n "__fish_plyfs_using_subcommand mount" -l priority -d 'The priority of the daemon where it runs on the processor of who waits for it' -r -f -a "high\t'A nice value of -10, where it may: as root'
normal\t'That of the program that mounts'"
complete -c plyfs -n "__fish_plyfs_using_subcommand mount" -l io-uring -d 'Whether requests come by io_uring, which is faster' -r -f -a "auto\t'Where the kernel offers it (Linux 6.14, where root has switched it on)'
on\t'Fail where it does not'
off\t'By /dev/fuse'"
complete -c plyfs -n "__fish_plyfs_using_subcommand mount" -l root -d 'The image store [default: /var/lib/plyfs for root, $XDG_DATA_HOME/plyfs otherwise]' -r -F
complete -c plyfs -n "__fish_plyfs_using_subcommand mount" -l read-only -d 'No writable layer'
complete -c plyfs -n "__fish_plyfs_using_subcommand mount" -l volatile -d 'Do not sync what is copied up: a crash of the machine may lose changes'
complete -c plyfs -n "__fish_plyfs_using_subcommand mount" -l accept-loss -d 'Mount an upper whose volatile mount was cut short by a crash of the machine'
complete -c plyfs -n "__fish_plyfs_using_subcommand mount" -l allow-other -d 'Let other users in, as permissions say (root\'s mounts always do)'
complete -c plyfs -n "__fish_plyfs_using_subcommand mount" -s f -l foreground -d 'Stay in the foreground'
complete -c plyfs -n "__fish_plyfs_using_subcommand mount" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c plyfs -n "__fish_plyfs_using_subcommand umount" -l root -d 'The image store [default: /var/lib/plyfs for root, $XDG_DATA_HOME/plyfs otherwise]' -r -F
complete -c plyfs -n "__fish_plyfs_using_subcommand umount" -s l -l lazy -d 'Detach now, even if it is in use; it goes when nobody uses it any more'
complete -c plyfs -n "__fish_plyfs_using_subcommand umount" -s h -l help -d 'Print help'
complete -c plyfs -n "__fish_plyfs_using_subcommand ps" -l format -d 'How to print' -r -f -a "table\t'Text for people'
json\t'One JSON object per line'"
complete -c plyfs -n "__fish_plyfs_using_subcommand ps" -l root -d 'The image store [default: /var/lib/plyfs for root, $XDG_DATA_HOME/plyfs otherwise]' -r -F
complete -c plyfs -n "__fish_plyfs_using_subcommand ps" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c plyfs -n "__fish_plyfs_using_subcommand diff" -l root -d 'The image store [default: /var/lib/plyfs for root, $XDG_DATA_HOME/plyfs otherwise]' -r -F
complete -c plyfs -n "__fish_plyfs_using_subcommand diff" -s h -l help -d 'Print help'
complete -c plyfs -n "__fish_plyfs_using_subcommand rm" -l root -d 'The image store [default: /var/lib/plyfs for root, $XDG_DATA_HOME/plyfs otherwise]' -r -F
complete -c plyfs -n "__fish_plyfs_using_subcommand rm" -s h -l help -d 'Print help'
complete -c plyfs -n "__fish_plyfs_using_subcommand stats" -l format -d 'How to print' -r -f -a "table\t'Text for people'
json\t'One JSON object per line'"
complete -c plyfs -n "__fish_plyfs_using_subcommand stats" -l root -d 'The image store [default: /var/lib/plyfs for root, $XDG_DATA_HOME/plyfs otherwise]' -r -F
complete -c plyfs -n "__fish_plyfs_using_subcommand stats" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c plyfs -n "__fish_plyfs_using_subcommand completions" -l root -d 'The image store [default: /var/lib/plyfs for root, $XDG_DATA_HOME/plyfs otherwise]' -r -F
complete -c plyfs -n "__fish_plyfs_using_subcommand completions" -s h -l help -d 'Print help (see more with \'--help\')'
